"""What was made of LLaMA to read long texts."""

from stemma.declare.family import About, Size
from stemma.declare.objectives import Chunks, CrossBatch
from stemma.declare.recipes import Schedule
from stemma.declare.tuning import SFT, LoRA, Pretraining, Tuning
from stemma.families.llama import llama, openllama
from stemma.families.templates import VICUNA
from stemma.nn.parts import (
    Dims,
    LinearScaling,
    Memory,
    PowerScaling,
    RandomScaling,
    TruncatedScaling,
    XPosScaling,
)

giraffe = llama.evolve(
    "giraffe",
    {
        "arch.position.scaling": LinearScaling(4.0),
        "objective": Chunks(overlap=0.5),
        "recipe.lr": 2e-5,
        "recipe.schedule.warmup": 300,
        "recipe.batch": 32 * 4096,
        "recipe.data": "long documents of RedPajama, in chunks that overlap by half",
    },
    sizes={
        "giraffe-13b": Size(
            Dims(5120, 40, 40, 13_824, 32_000, 2048),
            published="13.0B",
            aliases=("giraffe-v1-13b-scaled-4",),
            note="published as differences from LLaMA's weights",
        ),
        "giraffe-v1-13b-scaled-16": Size(
            Dims(5120, 40, 40, 13_824, 32_000, 2048),
            {"arch.position.scaling.factor": 16.0},
            published="13.0B",
            note="published as differences from LLaMA's weights",
        ),
        "giraffe-v1-13b-truncated": Size(
            Dims(5120, 40, 40, 13_824, 32_000, 2048),
            {"arch.position.scaling": TruncatedScaling(2048)},
            published="13.0B",
            note="a run of the paper; the length that its basis is cut for is unpublished, LLaMA's stands in",
        ),
        "giraffe-v1-13b-power": Size(
            Dims(5120, 40, 40, 13_824, 32_000, 2048),
            {"arch.position.scaling": PowerScaling(0.5)},
            published="13.0B",
            note="a run of the paper",
        ),
        "giraffe-v1-13b-random": Size(
            Dims(5120, 40, 40, 13_824, 32_000, 2048),
            {"arch.position.scaling": RandomScaling()},
            published="13.0B",
            note="a run of the paper",
        ),
        "giraffe-v1-13b-xpos": Size(
            Dims(5120, 40, 40, 13_824, 32_000, 2048),
            {"arch.position.scaling": XPosScaling(neighbours=True)},
            published="13.0B",
            note="a run of the paper, with the wrong pairs of its released code",
        ),
        "giraffe-v2-13b-32k": Size(
            Dims(5120, 40, 40, 13_824, 32_000, 4096),
            {"arch.norm.eps": 1e-5, "arch.position.scaling.factor": 8.0},
            published="13.0B",
            hub="abacusai/Giraffe-v2-13b-32k",
            note="of LLaMA-2",
        ),
    },
    about=About(
        2023,
        "Giraffe: Adventures in Expanding Context Lengths in LLMs",
        "arXiv:2308.10882",
        note="its weights start from LLaMA-13B's and LLaMA-2-13B's; the recipe is the example of its repository",
    ),
    others=("llama2",),
    tuning=Tuning(
        (
            Pretraining(
                "text",
                epochs=1,
                examples=32,
                context=4096,
                longer=2.0,
                stand_in="builtin:lookups,builtin:sources",
            ),
            SFT(
                "conversations",
                VICUNA,
                context=4096,
                lr=3e-4,
                loss_on="answers",
                adapter=LoRA(
                    alpha=16.0,
                    dropout=0.05,
                    targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
                ),
                stand_in="builtin:dialogues",
            ),
        ),
        "long documents of RedPajama, in chunks of the context that overlap by half; then Vicuna's conversations",
        "USER: ... ASSISTANT: ...</s>",
        result="retrieves lines to 8k at scale 4 and to 16k at scale 16; truncated and randomised bases have good "
        "perplexity and poor retrieval; xPos did not converge (Pal et al. 2023)",
        stand_ins="builtin:lookups and modules of the standard library stand in for RedPajama, builtin:dialogues for "
        "ShareGPT; the second stage's template and rate (its script's default) are this tree's reading",
    ),
)

longllama = openllama.evolve(
    "longllama",
    {
        "arch.mask": Memory((6, 12, 18), last=1024, dtype="bfloat16"),
        "objective": CrossBatch(texts=4, mixture=((0, 0), (1, 1), (2, 1), (3, 0))),
        "recipe.lr": 2e-5,
        "recipe.schedule": Schedule("constant"),
        "recipe.optimizer.weight_decay": 0.01,
        "recipe.batch": 256_000,
        "recipe.data": "RedPajama and code, documents over several rows (crossbatch); 10B tokens",
    },
    sizes={
        "longllama-3b": Size(Dims(3200, 26, 32, 8640, 32_000, 2048), published="3.4B", hub="syzymon/long_llama_3b"),
        "longllama-3b-v1.1": Size(
            Dims(3200, 26, 32, 8640, 32_000, 2048),
            {"recipe.data": "the same kinds of text, 5B tokens"},
            published="3.4B",
            hub="syzymon/long_llama_3b_v1_1",
            note="of OpenLLaMA 3B v2",
        ),
        "longllama-code-7b": Size(
            Dims(4096, 32, 32, 11_008, 32_016, 4096),
            {
                "arch.mask.layers": (8, 16, 24),
                "objective.mixture": ((0, 0), (1, 2), (2, 5), (3, 4)),
                "arch.norm.eps": 1e-5,
                "arch.position.base": 1e6,
                "recipe.data": "unpublished, 35B tokens",
            },
            published="6.7B",
            hub="syzymon/long_llama_code_7b",
            note="of Code LLaMA 7B",
        ),
    },
    about=About(
        2023,
        "Focused Transformer: Contrastive Training for Context Scaling",
        "arXiv:2307.03170",
        note="its weights start from OpenLLaMA's and Code LLaMA's; reading is that of the published inference code, in "
        "which a memory layer sees all that it has kept (the paper takes the 128 best by inner product); training is "
        "that of the paper for 3B and 7B, and that of v1.1 and Code 7B is unpublished",
    ),
    others=("codellama",),
    tuning=Tuning(
        (Pretraining("text", examples=125, context=2048, warmup=0.0, stand_in="builtin:lookups,builtin:sources"),),
        "RedPajama and code, long documents: 29 % Common Crawl, 25 % ArXiv, 25 % Python, 10 % books, 5 % C4, 2 % each "
        "of GitHub, StackExchange and Wikipedia; a document takes rows one after another",
        result="finds a passkey in 94.5 % of texts of 100k tokens and 73 % of 256k, trained at 8k; TREC 67.0 to 73.3 "
        "from 2k to 8k of context (Tworkowski et al. 2023)",
        stand_ins="builtin:lookups, keys and values with questions on them, and modules of the standard library stand "
        "in for the documents; the memory layers of another depth stand at equal parts of it",
    ),
)
