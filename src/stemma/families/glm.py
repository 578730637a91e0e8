"""The GLM line: blanks that a decoder fills, then chat models, which became causal."""

from stemma.declare.family import About, Size
from stemma.declare.objectives import CLM, Blanks
from stemma.declare.ramps import Ramp
from stemma.declare.recipes import AdamW, Schedule
from stemma.families.gpt import gpt2
from stemma.nn.parts import (
    MLP,
    BlankLearned,
    BlankRotary,
    Causal,
    Classify,
    DeepNorm,
    Dims,
    Dropout,
    GatedMLP,
    Heads,
    LMHead,
    Prefix,
    PreNorm,
    RMSNorm,
    Rotary,
    Sandwich,
    Summary,
    Tag,
)

WORDS = {"text.tokenizer": "wordpiece", "text.lower": True, "text.blanks": ("[MASK]",)}
LARGE = {"recipe.lr": 2e-4, "recipe.steps": 200_000, "recipe.schedule.warmup": 10_000}
MIXED = {"objective": Blanks(spans=0.5, sentences=0.3, suffix=0.2, least=0.25, inside=0.5)}
TEN = {
    **MIXED,
    "recipe.optimizer": AdamW(beta2=0.95, weight_decay=0.1),
    "recipe.lr": 1e-4,
    "recipe.schedule": Schedule("cosine", warmup=7000, floor=0.1, until=0.7),
    "recipe.batch": 1024 * 1024,
    "recipe.steps": 250_000,
    "recipe.data": "the Pile and CC-News",
}

glm = gpt2.evolve(
    "glm",
    {
        "arch.position": BlankLearned(),
        "arch.mask": Prefix(),
        "arch.init.positions": None,
        "objective": Blanks(),
        "text.bos": "<|startofpiece|>",
        "text.eos": "<|endofpiece|>",
        "text.pad": "[PAD]",
        "text.unk": "[UNK]",
        "text.cls": "[CLS]",
        "text.blanks": ("[MASK]", "[sMASK]", "[gMASK]"),
        "text.bos_id": None,
        "text.eos_id": None,
        "recipe.optimizer": AdamW(beta2=0.98, eps=1e-6, weight_decay=0.1),
        "recipe.lr": 4e-4,
        "recipe.schedule": Schedule("cosine", warmup=7500, floor=0.05),
        "recipe.steps": 150_000,
        "recipe.clip": 1.0,
        "recipe.data": "BooksCorpus and English Wikipedia",
    },
    sizes={
        "glm-base": Size(Dims(768, 12, 12, 3072, 30_592, 512), WORDS, "110M"),
        "glm-large": Size(Dims(1024, 24, 16, 4096, 30_592, 512), {**WORDS, **LARGE}, "335M"),
        "glm-410m": Size(
            Dims(1024, 30, 16, 4096, 30_592, 512), {**WORDS, **LARGE}, "410M; 1.25 times large", ("glm-1.25x",)
        ),
        "glm-515m": Size(
            Dims(1152, 30, 18, 4608, 30_592, 512), {**WORDS, **LARGE}, "515M; 1.5 times large", ("glm-1.5x",),
            hub="THUDM/glm-515m",
        ),
        "glm-2b": Size(Dims(2048, 36, 32, 8192, 50_304, 1024), TEN, "2B", hub="THUDM/glm-2b"),
        "glm-10b": Size(Dims(4096, 48, 64, 16_384, 50_304, 1024), TEN, "10B", hub="THUDM/glm-10b"),
        "glm-large-chinese": Size(
            Dims(1024, 24, 16, 4096, 50_048, 1024),
            {**MIXED, **LARGE, "text.tokenizer": "unigram", "recipe.data": "WuDaoCorpora"},
            "335M",
            hub="THUDM/glm-large-chinese",
        ),
        "glm-10b-chinese": Size(
            Dims(4096, 48, 64, 16_384, 50_048, 1024),
            {**TEN, "text.tokenizer": "unigram", "recipe.data": "WuDaoCorpora"},
            "10B",
            hub="THUDM/glm-10b-chinese",
        ),
    },
    about=About(
        2021,
        "GLM: General Language Model Pretraining with Autoregressive Blank Infilling",
        "arXiv:2103.10360; github.com/THUDM/GLM",
        note="what falls out and the rates of base, large and 10B are those of the released scripts; the batch (1024 "
        "rows) is the paper's, and what 2B and the Chinese models differ in is not published in full; GPT-2's byte "
        "pairs with added tokens in 2B and 10B, BERT's word pieces in the English ones below, SentencePiece in Chinese",
    ),
    others=("t5",),
)  # fmt: skip

glm_130b = glm.evolve(
    "glm-130b",
    {
        "arch.position": Rotary(10_000.0),
        "arch.residual": DeepNorm(),
        "arch.mlp": GatedMLP("gelu", bias=True),
        "arch.embed_norm": True,
        "objective": Blanks(spans=0.3, suffix=0.7),
        "text.tokenizer": "unigram",
        "text.bos": "<sop>",
        "text.eos": "<eop>",
        "text.pad": None,
        "text.unk": "<unk>",
        "text.cls": None,
        "text.blanks": ("[MASK]", "[gMASK]"),
        "recipe.optimizer": AdamW(beta2=0.95, weight_decay=0.1),
        "recipe.lr": 8e-5,
        "recipe.schedule": Schedule("cosine", warmup=0, floor=0.1),
        "recipe.batch": 4224 * 2048,
        "recipe.ramp": Ramp(((0.0, 192 / 4224), (0.07667, 1.0)), "power"),  # 2.5 % of the rows
        "recipe.steps": None,
        "recipe.data": "the Pile, WuDaoCorpora and Chinese web text, 400B tokens; 5% are instructions of 74 data sets",
    },
    sizes={"glm-130b": Size(Dims(12_288, 70, 96, 32_768, 150_528, 2048), published="130B")},
    about=About(
        2022,
        "GLM-130B: An Open Bilingual Pre-trained Model",
        "arXiv:2210.02414; github.com/THUDM/GLM-130B",
        weights="on request; in shards of SwissArmyTransformer, which are not read here",
        note="post-norm by DeepNorm; the released code, which puts each norm to the beginning of what follows it, "
        "also has one on the embeddings and multiplies with the embeddings for its logits: 128,697,769,984 parameters "
        "and the 24,576 of that norm. What fills [MASK] has the mask's position, after [gMASK] positions run on. The "
        "batch grows from 192 to 4224 rows over the first 2.5% of them, taken to be in a line. The embeddings' "
        "gradient is taken times 0.1, and DeepNorm's own initialisation is published; these are not fields here",
    ),
)

chatglm = glm_130b.evolve(
    "chatglm",
    {
        "arch.position": BlankRotary(10_000.0),
        "arch.mlp": MLP("gelu_tanh"),
        "arch.dropout": Dropout(),
        "text.pad": "<pad>",
        "text.bos_id": 130_004,
        "text.eos_id": 130_005,
        "text.pad_id": 3,
        "text.blank_ids": (130_000, 130_001),
        "recipe.lr": None,
        "recipe.batch": None,
        "recipe.ramp": None,
        "recipe.data": "Chinese and English text, 1T tokens; then supervised tuning and human feedback",
    },
    sizes={
        "chatglm-6b": Size(Dims(4096, 28, 32, 16_384, 130_528, 2048), published="6.2B", hub="THUDM/chatglm-6b"),
        "chatglm-6b-v0": Size(
            Dims(4096, 28, 32, 16_384, 150_528, 2048),
            {"text.bos_id": 150_004, "text.eos_id": 150_005, "text.blank_ids": (150_000, 150_001)},
            published="6.2B",
            note="the first release, whose vocabulary still held 20,000 image tokens",
        ),
    },
    about=About(
        2023,
        "ChatGLM-6B",
        "github.com/THUDM/ChatGLM-6B",
        note="its files hold the embeddings and a head, which its code ties; where the two differ they are read apart; "
        "training is unpublished but for the number of tokens",
    ),
)

chatglm2 = chatglm.evolve(
    "chatglm2",
    {
        "arch.position": Rotary(10_000.0, share=0.5, interleaved=True),
        "arch.norm": RMSNorm(1e-5),
        "arch.residual": PreNorm(),
        "arch.attention.out_bias": False,
        "arch.mask": Causal(),
        "arch.mlp": GatedMLP("silu"),
        "arch.heads.lm": LMHead(tied=False),
        "arch.embed_norm": False,
        "objective.shuffled": False,
        "text.tokenizer": "spm-bpe",
        "text.bos": "<s>",
        "text.eos": "</s>",
        "text.pad": "<unk>",
        "text.bos_id": 1,
        "text.eos_id": 2,
        "text.pad_id": 0,
        "text.blank_ids": (),
        "recipe.data": "Chinese and English text, 1.4T tokens; then supervised tuning and human feedback",
    },
    sizes={
        "chatglm2-6b": Size(
            Dims(4096, 28, 32, 13_696, 65_024, 32_768, kv_heads=2), published="6.2B", hub="THUDM/chatglm2-6b"
        ),
        "chatglm3-6b": Size(
            Dims(4096, 28, 32, 13_696, 65_024, 8192, kv_heads=2),
            {"recipe.data": "unpublished"},
            published="6.2B",
            aliases=("chatglm3-6b-base",),
            hub="THUDM/chatglm3-6b",
        ),
    },
    about=About(
        2023,
        "ChatGLM2-6B and ChatGLM3-6B",
        "github.com/THUDM/ChatGLM2-6B, github.com/THUDM/ChatGLM3",
        note="causal, and still trained to fill blanks, with [gMASK] and sop before every text; prompts are whole ids "
        "here. How it was trained is unpublished: the blanks of GLM-130B, filled in the order of the text, stand in."
        " In its 32k forms ChatGLM2 divides positions and ChatGLM3 multiplies the rotary base by the same key of "
        "the config, so that such files are refused",
    ),
)

glm4 = chatglm2.evolve(
    "glm-4",
    {
        "arch.norm.eps": 1.5625e-7,
        "objective": CLM(),
        "text.tokenizer": "bpe",
        "text.bos": None,
        "text.eos": "<|endoftext|>",
        "text.pad": "<|endoftext|>",
        "text.unk": None,
        "text.blanks": (),
        "text.bos_id": None,
        "text.eos_id": (151_329, 151_336, 151_338),
        "text.pad_id": 151_329,
        "recipe.data": "26 languages, Chinese and English above all, 10T tokens",
    },
    sizes={
        "glm-4-9b": Size(
            Dims(4096, 40, 32, 13_696, 151_552, 8192, kv_heads=2), published="9B", hub="THUDM/glm-4-9b-hf"
        ),
        "glm-4-9b-chat": Size(
            Dims(4096, 40, 32, 13_696, 151_552, 131_072, kv_heads=2),
            {"arch.position.base": 5e6},
            published="9B",
            hub="THUDM/glm-4-9b-chat-hf",
        ),
        "glm-4-9b-chat-1m": Size(
            Dims(4096, 40, 32, 13_696, 151_552, 1_048_576, kv_heads=4),
            {"arch.position.base": 1e8},
            published="9B",
            hub="THUDM/glm-4-9b-chat-1m-hf",
        ),
    },
    tasks={
        "classify": Heads(task=Classify(summary=Summary("last", act=None), bias=False)),
        "tag": Heads(task=Tag(dropout=0.1)),
    },
    about=About(
        2024,
        "ChatGLM: A Family of Large Language Models from GLM-130B to GLM-4 All Tools",
        "arXiv:2406.12793",
        note="rotary bases follow from the published rope_ratio (1, 500, 10,000) times 10,000; recipe unpublished",
    ),
)

glm4_0414 = glm4.evolve(
    "glm-4-0414",
    {"arch.norm.eps": 1e-5, "arch.residual": Sandwich(), "recipe.data": "15T tokens"},
    sizes={
        "glm-4-9b-0414": Size(
            Dims(4096, 40, 32, 13_696, 151_552, 32_768, kv_heads=2), published="9B", hub="THUDM/GLM-4-9B-0414"
        ),
        "glm-4-32b-0414": Size(
            Dims(6144, 61, 48, 23_040, 151_552, 32_768, kv_heads=2, head_dim=128),
            {"arch.attention.bias": False},
            published="32B",
            hub="THUDM/GLM-4-32B-0414",
            note="widths as recalled from its config.json; 32.6B parameters agree with them",
        ),
    },
    about=About(2025, "GLM-4-0414", "github.com/THUDM/GLM-4", note="recipe unpublished"),
)
