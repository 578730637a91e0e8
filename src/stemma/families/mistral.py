"""Mistral and Mixtral."""

from stemma.declare.family import About, Size
from stemma.families.llama import llama
from stemma.nn.parts import Causal, Dims, Experts, Sliding

mistral = llama.evolve(
    "mistral",
    {
        "arch.norm.eps": 1e-5,
        "arch.mask": Sliding(4096),
        "recipe.lr": None,
        "recipe.batch": None,
        "recipe.data": "unpublished",
    },
    sizes={
        "mistral-7b-v0.1": Size(
            Dims(4096, 32, 32, 14_336, 32_000, 32_768, kv_heads=8),
            published="7.24B",
            aliases=("mistral-7b",),
            hub="mistralai/Mistral-7B-v0.1",
        ),
        "mistral-7b-v0.2": Size(
            Dims(4096, 32, 32, 14_336, 32_000, 32_768, kv_heads=8),
            {"arch.mask": Causal(), "arch.position.base": 1e6},
            published="7.24B",
            hub="mistralai/Mistral-7B-Instruct-v0.2",
        ),
        "mistral-7b-v0.3": Size(
            Dims(4096, 32, 32, 14_336, 32_768, 32_768, kv_heads=8),
            {"arch.mask": Causal(), "arch.position.base": 1e6},
            published="7.25B",
            hub="mistralai/Mistral-7B-v0.3",
        ),
        "mistral-nemo-12b": Size(
            Dims(5120, 40, 32, 14_336, 131_072, 131_072, kv_heads=8, head_dim=128),
            {"arch.mask": Causal(), "arch.position.base": 1e6, "text.tokenizer": "bpe"},
            published="12.2B",
            hub="mistralai/Mistral-Nemo-Base-2407",
            note="heads of 128 are narrower than d_model; its file may name a longer context than the 128k trained on",
        ),
    },
    about=About(
        2023,
        "Mistral 7B",
        "arXiv:2310.06825",
        note="grouped-query attention is in the sizes (8 key heads); training data, tokens and rates are unpublished",
    ),
)

mixtral = mistral.evolve(
    "mixtral",
    {"arch.mask": Causal(), "arch.mlp": Experts("silu"), "arch.position.base": 1e6},
    sizes={
        "mixtral-8x7b": Size(
            Dims(4096, 32, 32, 14_336, 32_000, 32_768, kv_heads=8, experts=8, active=2),
            published="46.7B, of which a token uses 12.9B",
            hub="mistralai/Mixtral-8x7B-v0.1",
        ),
        "mixtral-8x22b": Size(
            Dims(6144, 56, 48, 16_384, 32_000, 65_536, kv_heads=8, experts=8, active=2),
            published="141B, of which a token uses 39B",
            hub="mistralai/Mixtral-8x22B-v0.1",
        ),
        "mixtral-8x22b-v0.3": Size(
            Dims(6144, 56, 48, 16_384, 32_768, 65_536, kv_heads=8, experts=8, active=2),
            published="141B, of which a token uses 39B",
            hub="mistralai/Mixtral-8x22B-Instruct-v0.1",
            note="the vocabulary of the third tokenizer, which the public instruct model has",
        ),
    },
    about=About(
        2024,
        "Mixtral of Experts",
        "arXiv:2401.04088",
        note="training data, tokens, rates and the router's loss are unpublished",
    ),
)
