"""Qwen2, 2.5 and 3."""

from stemma.declare.family import About, Size
from stemma.families.llama import llama2
from stemma.nn.parts import Dims, Experts, RMSNorm

TIED = {"arch.heads.lm.tied": True}
WIDE = {"arch.norm.eps": 1e-5}

qwen2 = llama2.evolve(
    "qwen2",
    {
        "arch.norm.eps": 1e-6,
        "arch.attention.bias": True,
        "arch.position.base": 1e6,
        "text.tokenizer": "bpe",
        "text.bos": None,
        "text.eos": "<|endoftext|>",
        "text.pad": "<|endoftext|>",
        "text.unk": None,
        "text.bos_id": 151_643,
        "text.eos_id": 151_643,
        "recipe.lr": None,
        "recipe.batch": None,
        "recipe.data": "unpublished, 7T tokens (0.5B: 12T)",
    },
    sizes={
        "qwen2-0.5b": Size(
            Dims(896, 24, 14, 4864, 151_936, 131_072, kv_heads=2), TIED, published="0.49B", hub="Qwen/Qwen2-0.5B"
        ),
        "qwen2-1.5b": Size(
            Dims(1536, 28, 12, 8960, 151_936, 131_072, kv_heads=2), TIED, published="1.54B", hub="Qwen/Qwen2-1.5B"
        ),
        "qwen2-7b": Size(
            Dims(3584, 28, 28, 18_944, 152_064, 131_072, kv_heads=4), published="7.6B", hub="Qwen/Qwen2-7B"
        ),
        "qwen2-72b": Size(
            Dims(8192, 80, 64, 29_568, 152_064, 131_072, kv_heads=8), WIDE, published="72.7B", hub="Qwen/Qwen2-72B"
        ),
    },
    about=About(
        2024,
        "Qwen2 Technical Report",
        "arXiv:2407.10671",
        note="grouped-query attention is in the sizes; lengths and the eps of 72B are recalled from their files, "
        "whose optional window over the upper layers is off",
    ),
)

qwen25 = qwen2.evolve(
    "qwen2.5",
    {"recipe.data": "unpublished, 18T tokens"},
    sizes={
        "qwen2.5-0.5b": Size(
            Dims(896, 24, 14, 4864, 151_936, 32_768, kv_heads=2), TIED, published="0.49B", hub="Qwen/Qwen2.5-0.5B"
        ),
        "qwen2.5-1.5b": Size(
            Dims(1536, 28, 12, 8960, 151_936, 131_072, kv_heads=2), TIED, published="1.54B", hub="Qwen/Qwen2.5-1.5B"
        ),
        "qwen2.5-3b": Size(
            Dims(2048, 36, 16, 11_008, 151_936, 32_768, kv_heads=2), TIED, published="3.09B", hub="Qwen/Qwen2.5-3B"
        ),
        "qwen2.5-7b": Size(
            Dims(3584, 28, 28, 18_944, 152_064, 131_072, kv_heads=4), published="7.61B", hub="Qwen/Qwen2.5-7B"
        ),
        "qwen2.5-14b": Size(
            Dims(5120, 48, 40, 13_824, 152_064, 131_072, kv_heads=8), WIDE, published="14.7B", hub="Qwen/Qwen2.5-14B"
        ),
        "qwen2.5-32b": Size(
            Dims(5120, 64, 40, 27_648, 152_064, 131_072, kv_heads=8), WIDE, published="32.5B", hub="Qwen/Qwen2.5-32B"
        ),
        "qwen2.5-72b": Size(
            Dims(8192, 80, 64, 29_568, 152_064, 131_072, kv_heads=8), WIDE, published="72.7B", hub="Qwen/Qwen2.5-72B"
        ),
    },
    about=About(
        2024,
        "Qwen2.5 Technical Report",
        "arXiv:2412.15115",
        note="the network is Qwen2's; lengths and the eps of the widest are recalled from their files",
    ),
)

qwen3 = qwen25.evolve(
    "qwen3",
    {
        "arch.attention.bias": False,
        "arch.attention.qk_norm": RMSNorm(1e-6),
        "recipe.data": "unpublished, 36T tokens in 119 languages",
    },
    sizes={
        "qwen3-0.6b": Size(
            Dims(1024, 28, 16, 3072, 151_936, 40_960, kv_heads=8, head_dim=128),
            TIED,
            published="0.6B",
            hub="Qwen/Qwen3-0.6B",
        ),
        "qwen3-1.7b": Size(
            Dims(2048, 28, 16, 6144, 151_936, 40_960, kv_heads=8, head_dim=128),
            TIED,
            published="1.7B",
            hub="Qwen/Qwen3-1.7B",
        ),
        "qwen3-4b": Size(
            Dims(2560, 36, 32, 9728, 151_936, 40_960, kv_heads=8, head_dim=128),
            TIED,
            published="4.0B",
            hub="Qwen/Qwen3-4B",
        ),
        "qwen3-8b": Size(
            Dims(4096, 36, 32, 12_288, 151_936, 40_960, kv_heads=8, head_dim=128),
            published="8.2B",
            hub="Qwen/Qwen3-8B",
        ),
        "qwen3-14b": Size(
            Dims(5120, 40, 40, 17_408, 151_936, 40_960, kv_heads=8, head_dim=128),
            published="14.8B",
            hub="Qwen/Qwen3-14B",
        ),
        "qwen3-32b": Size(
            Dims(5120, 64, 64, 25_600, 151_936, 40_960, kv_heads=8, head_dim=128),
            published="32.8B",
            hub="Qwen/Qwen3-32B",
        ),
    },
    about=About(2025, "Qwen3 Technical Report", "arXiv:2505.09388"),
)

qwen3_moe = qwen3.evolve(
    "qwen3-moe",
    {"arch.mlp": Experts("silu")},
    sizes={
        "qwen3-30b-a3b": Size(
            Dims(2048, 48, 32, 768, 151_936, 40_960, kv_heads=4, head_dim=128, experts=128, active=8),
            published="30.5B, of which a token uses 3.3B",
            hub="Qwen/Qwen3-30B-A3B",
        ),
        "qwen3-235b-a22b": Size(
            Dims(4096, 94, 64, 1536, 151_936, 40_960, kv_heads=4, head_dim=128, experts=128, active=8),
            published="235B, of which a token uses 22B",
            hub="Qwen/Qwen3-235B-A22B",
        ),
    },
    about=About(2025, "Qwen3 Technical Report", "arXiv:2505.09388"),
)
