"""LLaMA and Mistral: open decoders."""

from stemma.families.declare import About, Size
from stemma.families.gpt import gpt3
from stemma.nn.parts import Causal, Dims, GatedMLP, LMHead, RMSNorm, Rotary, Sliding

llama = gpt3.evolve(
    "llama",
    {
        "arch.position": Rotary(10_000.0),
        "arch.norm": RMSNorm(1e-6),
        "arch.attention.bias": False,
        "arch.attention.out_bias": False,
        "arch.mask": Causal(),
        "arch.mlp": GatedMLP("silu"),
        "arch.heads.lm": LMHead(tied=False),
        "arch.init.residual": False,
        "text.tokenizer": "spm-bpe",
        "text.bos": "<s>",
        "text.eos": "</s>",
        "text.unk": "<unk>",
        "text.bos_id": 1,
        "text.eos_id": 2,
        "recipe.lr": 3e-4,
        "recipe.schedule.warmup": 2000,
        "recipe.batch": 4_000_000,
        "recipe.data": "Common Crawl, C4, GitHub, Wikipedia, books, ArXiv, StackExchange; 1T to 1.4T tokens",
    },
    sizes={
        "llama-7b": Size(
            Dims(4096, 32, 32, 11_008, 32_000, 2048),
            published="6.7B",
            hub="huggyllama/llama-7b",
            aliases=("llama1-7b",),
        ),
        "llama-13b": Size(
            Dims(5120, 40, 40, 13_824, 32_000, 2048),
            published="13.0B",
            hub="huggyllama/llama-13b",
            aliases=("llama1-13b",),
        ),
        "llama-33b": Size(
            Dims(6656, 60, 52, 17_920, 32_000, 2048),
            {"recipe.lr": 1.5e-4},
            published="32.5B",
            hub="huggyllama/llama-30b",
            aliases=("llama-30b", "llama1-33b"),
        ),
        "llama-65b": Size(
            Dims(8192, 80, 64, 22_016, 32_000, 2048),
            {"arch.norm.eps": 1e-5, "recipe.lr": 1.5e-4},
            published="65.2B",
            hub="huggyllama/llama-65b",
            aliases=("llama1-65b",),
        ),
    },
    about=About(
        2023,
        "LLaMA: Open and Efficient Foundation Language Models",
        "arXiv:2302.13971",
        note="initialisation is unpublished: N(0, 0.02), transformers' choice, stands in",
    ),
)

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
    },
    about=About(
        2023,
        "Mistral 7B",
        "arXiv:2310.06825",
        note="grouped-query attention is in the sizes (8 key heads); training data, tokens and rates are unpublished",
    ),
)
