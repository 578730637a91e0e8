"""The GPT line: a decoder that predicts the next token."""

import math

from stemma.declare.family import About, Size
from stemma.declare.objectives import CLM
from stemma.declare.ramps import Ramp
from stemma.declare.recipes import AdamW, Schedule
from stemma.families.transformer import transformer
from stemma.nn.parts import (
    Answer,
    Causal,
    Choose,
    Classify,
    Cycle,
    Dims,
    Heads,
    Learned,
    LMHead,
    Normal,
    PreNorm,
    Sliding,
    Summary,
    Tag,
)

LAST = Summary("last", act=None)  # a task reads the last token as it is

gpt1 = transformer.evolve(
    "gpt1",
    {
        "arch.structure": "decoder",
        "arch.position": Learned(),
        "arch.norm.eps": 1e-5,
        "arch.attention.bias": True,
        "arch.attention.out_bias": True,
        "arch.mlp.act": "gelu_tanh",
        "arch.init": Normal(0.02),
        "arch.dropout.attention": 0.1,
        "arch.embed_scale": False,
        "objective": CLM(),
        "text.tokenizer": "gpt-bpe",
        "text.lower": True,
        "text.eos": None,
        "text.pad": None,
        "text.unk": "<unk>",
        "recipe.optimizer": AdamW(eps=1e-8, weight_decay=0.01),
        "recipe.lr": 2.5e-4,
        "recipe.schedule": Schedule("cosine", warmup=2000),
        "recipe.batch": 64 * 512,
        "recipe.steps": None,
        "recipe.mixed": True,
        "recipe.data": "BooksCorpus, 100 epochs, windows of 512 tokens",
    },
    sizes={
        "gpt1": Size(
            Dims(768, 12, 12, 3072, 40_478, 512),
            published="117M",
            aliases=("gpt1-base", "openai-gpt"),
            hub="openai-community/openai-gpt",
        )
    },
    about=About(2018, "Improving Language Understanding by Generative Pre-Training", "Radford et al. 2018, OpenAI"),
    tasks={
        "classify": Heads(task=Classify(summary=LAST, bias=False)),
        "choose": Heads(lm=LMHead(), task=Choose(summary=LAST, dropout=0.1)),
    },
)

gpt2 = gpt1.evolve(
    "gpt2",
    {
        "arch.residual": PreNorm(),
        "arch.init.residual": True,
        "arch.init.positions": 0.01,
        "text.tokenizer": "bpe",
        "text.lower": False,
        "text.bos": "<|endoftext|>",
        "text.eos": "<|endoftext|>",
        "text.unk": None,
        "text.bos_id": 50_256,
        "text.eos_id": 50_256,
        "recipe.lr": None,
        "recipe.batch": 512 * 1024,
        "recipe.data": "WebText, 8M pages, 40 GB",
    },
    sizes={
        "gpt2": Size(
            Dims(768, 12, 12, 3072, 50_257, 1024),
            published="117M in the paper, which its authors call miscounted; 124M",
            aliases=("gpt2-small",),
            hub="openai-community/gpt2",
        ),
        "gpt2-medium": Size(
            Dims(1024, 24, 16, 4096, 50_257, 1024), published="345M; 355M", hub="openai-community/gpt2-medium"
        ),
        "gpt2-large": Size(
            Dims(1280, 36, 20, 5120, 50_257, 1024), published="762M; 774M", hub="openai-community/gpt2-large"
        ),
        "gpt2-xl": Size(
            Dims(1600, 48, 25, 6400, 50_257, 1024), published="1542M; 1.5B", hub="openai-community/gpt2-xl"
        ),
    },
    about=About(
        2019,
        "Language Models are Unsupervised Multitask Learners",
        "Radford et al. 2019, OpenAI",
        note="learning rate, steps, schedule and dropout of pretraining are unpublished; the residual scaling of the "
        "initialisation is in the paper and not in the released code, which draws positions from N(0, 0.01)",
    ),
    tasks={**gpt1.tasks, "tag": Heads(task=Tag(dropout=0.1)), "answer": Heads(task=Answer())},
)


def _gpt3(name: str, dims: Dims, published: str, lr: float, batch: int, note: str = "") -> dict[str, Size]:
    """What the paper counts in tokens, in steps: the batch grows by as much with every token, so by a power a step."""
    first, over = 32_000, 4e9 + 8e9 * (batch - 5e5) / (32e5 - 5e5)
    pace = (batch - first) / over
    growing = math.log(batch / first) / pace
    steps = growing + (300e9 - over) / batch
    changes = {
        "recipe.lr": lr,
        "recipe.batch": batch,
        "recipe.steps": round(steps),
        "recipe.ramp": Ramp(((0.0, first / batch), (round(growing / steps, 5), 1.0)), "power"),
        "recipe.schedule.warmup": round(math.log(1 + pace * 375e6 / first) / pace),
        "recipe.schedule.until": round((growing + (260e9 - over) / batch) / steps, 5),
    }
    return {name: Size(dims, changes, published, note=note)}


gpt3 = gpt2.evolve(
    "gpt3",
    {
        "arch.mask": Cycle((Causal(), Sliding(256))),
        "arch.init.positions": None,
        "arch.dropout.embed": 0.0,
        "arch.dropout.residual": 0.0,
        "arch.dropout.attention": 0.0,
        "recipe.optimizer": AdamW(beta2=0.95, weight_decay=0.1),
        "recipe.schedule": Schedule("cosine", warmup=750, floor=0.1, until=260 / 300),
        "recipe.clip": 1.0,
        "recipe.data": "Common Crawl, WebText2, Books1, Books2, Wikipedia; 300B tokens",
    },
    sizes={
        **_gpt3("gpt3-small", Dims(768, 12, 12, 3072, 50_257, 2048), "125M", 6e-4, 500_000),
        **_gpt3("gpt3-medium", Dims(1024, 24, 16, 4096, 50_257, 2048), "350M", 3e-4, 500_000),
        **_gpt3("gpt3-large", Dims(1536, 24, 16, 6144, 50_257, 2048), "760M", 2.5e-4, 500_000),
        **_gpt3(
            "gpt3-xl",
            Dims(2048, 24, 16, 8192, 50_257, 2048),
            "1.3B",
            2e-4,
            1_000_000,
            "the paper prints 24 heads of 128, which is not its width of 2048; 16 heads give its count",
        ),
        **_gpt3("gpt3-2.7b", Dims(2560, 32, 32, 10_240, 50_257, 2048), "2.7B", 1.6e-4, 1_000_000),
        **_gpt3("gpt3-6.7b", Dims(4096, 32, 32, 16_384, 50_257, 2048), "6.7B", 1.2e-4, 2_000_000),
        **_gpt3(
            "gpt3-13b",
            Dims(5120, 40, 40, 20_480, 50_257, 2048),
            "13B",
            1e-4,
            2_000_000,
            "the paper prints a width of 5140, which 40 heads of 128 do not fill; 5120 is meant",
        ),
        **_gpt3("gpt3-175b", Dims(12_288, 96, 96, 49_152, 50_257, 2048), "175B", 0.6e-4, 3_200_000),
    },
    about=About(
        2020,
        "Language Models are Few-Shot Learners",
        "arXiv:2005.14165",
        weights="never published",
        note="the width of the sparse band, which layers have it, initialisation and dropout are unpublished: band 256 "
        "in odd layers is a stand-in; rates rise over 375M tokens and fall over 260B of the 300B, here in a line and a "
        "cosine of the steps; the batch grows in a line of the tokens from 32k to full over the first 4 to 12 billion: "
        "which size over how many is unpublished, and 4 for 0.5M, 12 for 3.2M and in proportion between stand in",
    ),
)
