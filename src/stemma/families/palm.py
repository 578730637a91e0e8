"""PaLM, and Command R, whose block is PaLM's with grouped queries."""

from stemma.declare.family import About, Size
from stemma.declare.ramps import Ramp
from stemma.declare.recipes import Adafactor, Schedule
from stemma.families.gpt import gpt3
from stemma.nn.parts import Causal, Dims, GatedMLP, HeadNorm, LayerNorm, LeCun, LMHead, Normal, Parallel, Rotary

palm = gpt3.evolve(
    "palm",
    {
        "arch.position": Rotary(10_000.0, interleaved=True),
        "arch.norm": LayerNorm(1e-6, bias=False),
        "arch.residual": Parallel(),
        "arch.attention.bias": False,
        "arch.attention.out_bias": False,
        "arch.mask": Causal(),
        "arch.mlp": GatedMLP("silu"),
        "arch.heads.lm.scaled": True,
        "arch.init": LeCun(),
        "text.tokenizer": "spm-bpe",
        "text.bos": None,
        "text.eos": "[eod]",
        "text.unk": "<unk>",
        "text.bos_id": None,
        "text.eos_id": None,
        "recipe.optimizer": Adafactor(weight_decay=1.0, smallest=None, momentum=0.9, power=2.0),
        "recipe.lr": 1e-2,
        "recipe.schedule": Schedule("rsqrt", warmup=10_000),
        "recipe.z_loss": 1e-4,
        "recipe.data": "social media 50%, web pages 27%, books 13%, GitHub 5%, Wikipedia 4%, news 1%; 780B tokens",
    },
    sizes={
        name: Size(dims, {"recipe.batch": rows * 2048, "recipe.steps": 255_000} | ramp, published, note=note)
        for name, dims, rows, ramp, published, note in (
            (
                "palm-8b",
                Dims(4096, 32, 16, 16_384, 256_000, 2048, kv_heads=1),
                512,
                {},
                "8.63B",
                "256 rows up to a step that is unpublished, for which reason it has no ramp here",
            ),
            (
                "palm-62b",
                Dims(8192, 64, 32, 32_768, 256_000, 2048, kv_heads=1),
                1024,
                {},
                "62.50B",
                "512 rows up to a step that is unpublished, for which reason it has no ramp here",
            ),
            (
                "palm-540b",
                Dims(18_432, 118, 48, 73_728, 256_000, 2048, kv_heads=1, head_dim=256),
                2048,
                {"recipe.ramp": Ramp(((0.0, 0.25), (50_000 / 255_000, 0.5), (115_000 / 255_000, 1.0)))},
                "540.35B",
                "512 rows at first, 1024 from step 50,000 and 2048 from step 115,000 on",
            ),
        )
    },
    about=About(
        2022,
        "PaLM: Scaling Language Modeling with Pathways",
        "arXiv:2204.02311",
        weights="never published",
        note="the norm's eps, the rotary base and its pairing are unpublished: 1e-6, 10,000 and neighbours stand in, "
        "as does the kind of SentencePiece model (256,000 pieces, white space and bytes kept, digits apart). "
        "Its weight decay of the rate squared is read as what a step takes of a weight; "
        "whether it was multiplied by the rate once more is not said, nor are the eps and clipping of its Adafactor",
    ),
)

command_r = palm.evolve(
    "command-r",
    {
        "arch.norm.eps": 1e-5,
        "arch.position.base": 8e6,
        "arch.heads.lm": LMHead(factor=0.0625),
        "arch.init": Normal(0.02),
        "text.tokenizer": "bpe",
        "text.bos": "<BOS_TOKEN>",
        "text.eos": "<|END_OF_TURN_TOKEN|>",
        "text.pad": "<PAD>",
        "text.unk": "<UNK>",
        "text.bos_id": 5,
        "text.eos_id": 255_001,
        "text.pad_id": 0,
        "recipe.lr": None,
        "recipe.data": "unpublished",
    },
    sizes={
        "command-r-v01": Size(
            Dims(8192, 40, 64, 22_528, 256_000, 8192),
            {"recipe.batch": None},
            published="35B",
            aliases=("command-r",),
            hub="CohereForAI/c4ai-command-r-v01",
        ),
        "command-r-08-2024": Size(
            Dims(8192, 40, 64, 24_576, 256_000, 131_072, kv_heads=8),
            {"recipe.batch": None, "arch.position.base": 4e6},
            published="32B",
            hub="CohereForAI/c4ai-command-r-08-2024",
        ),
        "command-r-plus": Size(
            Dims(12_288, 64, 96, 33_792, 256_000, 8192, kv_heads=8),
            {
                "recipe.batch": None,
                "arch.position.base": 7.5e7,
                "arch.heads.lm.factor": 0.8333333333333334,
                "arch.attention.qk_norm": HeadNorm(1e-5),
            },
            published="104B",
            hub="CohereForAI/c4ai-command-r-plus",
        ),
        "aya-23-8b": Size(
            Dims(4096, 32, 32, 14_336, 256_000, 8192, kv_heads=8),
            {"recipe.batch": None, "arch.position.base": 10_000.0},
            published="8B",
            hub="CohereForAI/aya-23-8B",
        ),
    },
    about=About(
        2024,
        "Command R",
        "Cohere 2024; transformers, models/cohere",
        note="training is unpublished; rotary bases and context are as recalled from the published config.json files",
    ),
)
