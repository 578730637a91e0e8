"""T5 and its second version: every task as text to text."""

from stemma.families.declare import About, Adafactor, Size, Spans
from stemma.families.transformer import transformer
from stemma.nn.parts import Buckets, Dims, Dropout, GatedMLP, LMHead, PreNorm, RMSNorm

t5 = transformer.evolve(
    "t5",
    {
        "arch.position": Buckets(32, 128),
        "arch.norm": RMSNorm(1e-6),
        "arch.residual": PreNorm(),
        "arch.attention.scaled": False,
        "arch.mlp.bias": False,
        "arch.heads.lm": LMHead(tied=True, scaled=True),
        "arch.dropout": Dropout(embed=0.1, residual=0.1, attention=0.1, inner=0.1, final=0.1),
        "arch.embed_scale": False,
        "objective": Spans(0.15, 3.0),
        "text.tokenizer": "unigram",
        "text.unk": "<unk>",
        "text.sentinels": 100,
        "text.eos_id": 1,
        "text.pad_id": 0,
        "text.start_id": 0,
        "recipe.optimizer": Adafactor(),
        "recipe.lr": 1e-2,
        "recipe.schedule.warmup": 10_000,
        "recipe.batch": 2048 * 512,
        "recipe.steps": 1_000_000,
        "recipe.mixed": True,
        "recipe.data": "C4 and a mixture of supervised tasks, about 1T tokens",
    },
    sizes={
        "t5-small": Size(Dims(512, 6, 8, 2048, 32_128, 512), published="60M", hub="google-t5/t5-small"),
        "t5-base": Size(Dims(768, 12, 12, 3072, 32_128, 512), published="220M", hub="google-t5/t5-base"),
        "t5-large": Size(Dims(1024, 24, 16, 4096, 32_128, 512), published="770M", hub="google-t5/t5-large"),
        "t5-3b": Size(Dims(1024, 24, 32, 16_384, 32_128, 512, head_dim=128), published="3B", hub="google-t5/t5-3b"),
        "t5-11b": Size(Dims(1024, 24, 128, 65_536, 32_128, 512, head_dim=128), published="11B", hub="google-t5/t5-11b"),
    },
    about=About(
        2019,
        "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
        "arXiv:1910.10683",
        note="the peak rate is 1/sqrt(10,000), held for the first 10,000 steps",
    ),
)

t5_v1_1 = t5.evolve(
    "t5-v1.1",
    {
        "arch.mlp": GatedMLP("gelu_tanh"),
        "arch.heads.lm": LMHead(tied=False),
        "arch.dropout": Dropout(),
        "recipe.data": "C4",
    },
    sizes={
        "t5-v1.1-small": Size(
            Dims(512, 8, 6, 1024, 32_128, 512, head_dim=64), published="77M", hub="google/t5-v1_1-small"
        ),
        "t5-v1.1-base": Size(Dims(768, 12, 12, 2048, 32_128, 512), published="250M", hub="google/t5-v1_1-base"),
        "t5-v1.1-large": Size(Dims(1024, 24, 16, 2816, 32_128, 512), published="800M", hub="google/t5-v1_1-large"),
        "t5-v1.1-xl": Size(Dims(2048, 24, 32, 5120, 32_128, 512), published="3B", hub="google/t5-v1_1-xl"),
        "t5-v1.1-xxl": Size(Dims(4096, 24, 64, 10_240, 32_128, 512), published="11B", hub="google/t5-v1_1-xxl"),
    },
    about=About(
        2020,
        "T5 version 1.1: GEGLU, no weight tying, no dropout in pretraining, C4 only",
        "github.com/google-research/text-to-text-transfer-transformer, released_checkpoints.md; arXiv:2002.05202",
    ),
)
