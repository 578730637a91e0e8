"""LLaMA and what Meta and others made of it: open decoders."""

from stemma.declare.family import About, Size
from stemma.families.gpt import LAST, gpt3
from stemma.nn.parts import (
    Answer,
    Causal,
    Classify,
    Dims,
    GatedMLP,
    Heads,
    Llama3Scaling,
    LMHead,
    RMSNorm,
    Rotary,
    Tag,
)

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
        "recipe.schedule.until": 1.0,
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
    tasks={
        "classify": Heads(task=Classify(summary=LAST, bias=False)),
        "tag": Heads(task=Tag(dropout=0.1)),
        "answer": Heads(task=Answer()),
    },
)

llama2 = llama.evolve(
    "llama2",
    {
        "arch.norm.eps": 1e-5,
        "recipe.optimizer.eps": 1e-5,
        "recipe.data": "unpublished public text, 2T tokens",
    },
    sizes={
        "llama2-7b": Size(Dims(4096, 32, 32, 11_008, 32_000, 4096), published="6.7B", hub="meta-llama/Llama-2-7b-hf"),
        "llama2-13b": Size(
            Dims(5120, 40, 40, 13_824, 32_000, 4096), published="13.0B", hub="meta-llama/Llama-2-13b-hf"
        ),
        "llama2-34b": Size(
            Dims(8192, 48, 64, 22_016, 32_000, 4096, kv_heads=8),
            {"recipe.lr": 1.5e-4},
            published="34B",
            note="never released; its widths are those of Code LLaMA 34B, which was made of it",
        ),
        "llama2-70b": Size(
            Dims(8192, 80, 64, 28_672, 32_000, 4096, kv_heads=8),
            {"recipe.lr": 1.5e-4},
            published="69.0B",
            hub="meta-llama/Llama-2-70b-hf",
        ),
    },
    about=About(
        2023,
        "Llama 2: Open Foundation and Fine-Tuned Chat Models",
        "arXiv:2307.09288",
        note="grouped-query attention (8 key heads) is in the sizes from 34B up; the rate of 34B is recalled",
    ),
)


llama3 = llama2.evolve(
    "llama3",
    {
        "arch.position.base": 5e5,
        "text.tokenizer": "bpe",
        "text.bos": "<|begin_of_text|>",
        "text.eos": "<|end_of_text|>",
        "text.unk": None,
        "text.bos_id": 128_000,
        "text.eos_id": 128_001,
        "recipe.schedule.warmup": 8000,
        "recipe.batch": None,
        "recipe.mixed": False,
        "recipe.data": "unpublished public text, 15T tokens",
    },
    sizes={
        "llama3-8b": Size(
            Dims(4096, 32, 32, 14_336, 128_256, 8192, kv_heads=8), published="8.0B", hub="meta-llama/Meta-Llama-3-8B"
        ),
        "llama3-70b": Size(
            Dims(8192, 80, 64, 28_672, 128_256, 8192, kv_heads=8),
            {"recipe.lr": 1.5e-4},
            published="70.6B",
            hub="meta-llama/Meta-Llama-3-70B",
        ),
    },
    about=About(
        2024,
        "The Llama 3 Herd of Models",
        "arXiv:2407.21783",
        note="rates and warmup are the paper's, for the 3.1 models; a batch grows from 4M to 16M tokens",
    ),
)

llama31 = llama3.evolve(
    "llama3.1",
    {"arch.position.scaling": Llama3Scaling(8.0, 1.0, 4.0, 8192)},
    sizes={
        "llama3.1-8b": Size(
            Dims(4096, 32, 32, 14_336, 128_256, 131_072, kv_heads=8), published="8.0B", hub="meta-llama/Llama-3.1-8B"
        ),
        "llama3.1-70b": Size(
            Dims(8192, 80, 64, 28_672, 128_256, 131_072, kv_heads=8),
            {"recipe.lr": 1.5e-4},
            published="70.6B",
            hub="meta-llama/Llama-3.1-70B",
        ),
        "llama3.1-405b": Size(
            Dims(16_384, 126, 128, 53_248, 128_256, 131_072, kv_heads=8),
            {"recipe.lr": 8e-5},
            published="405B",
            hub="meta-llama/Llama-3.1-405B",
        ),
    },
    about=About(2024, "The Llama 3 Herd of Models", "arXiv:2407.21783"),
)

llama32 = llama31.evolve(
    "llama3.2",
    {"arch.position.scaling.factor": 32.0, "arch.heads.lm.tied": True, "recipe.lr": None},
    sizes={
        "llama3.2-1b": Size(
            Dims(2048, 16, 32, 8192, 128_256, 131_072, kv_heads=8), published="1.23B", hub="meta-llama/Llama-3.2-1B"
        ),
        "llama3.2-3b": Size(
            Dims(3072, 28, 24, 8192, 128_256, 131_072, kv_heads=8), published="3.21B", hub="meta-llama/Llama-3.2-3B"
        ),
    },
    about=About(
        2024,
        "Llama 3.2",
        "Meta 2024, model card",
        note="the text models: pruned from Llama 3.1 8B, then distilled from its 8B and 70B",
    ),
)

tinyllama = llama2.evolve(
    "tinyllama",
    {
        "recipe.optimizer.eps": 1e-8,
        "recipe.lr": 4e-4,
        "recipe.batch": 2_000_000,
        "recipe.data": "SlimPajama and StarCoder data, 3T tokens in about three epochs",
    },
    sizes={
        "tinyllama-1.1b": Size(
            Dims(2048, 22, 32, 5632, 32_000, 2048, kv_heads=4),
            published="1.1B",
            hub="TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
        )
    },
    about=About(2024, "TinyLlama: An Open-Source Small Language Model", "arXiv:2401.02385"),
)

SECOND_DATA = "Falcon RefinedWeb, StarCoder data, and parts of RedPajama; 1T tokens"

openllama = llama.evolve(
    "openllama",
    {"recipe.data": "RedPajama, 1T tokens"},
    sizes={
        "openllama-3b": Size(
            Dims(3200, 26, 32, 8640, 32_000, 2048), published="3.4B", hub="openlm-research/open_llama_3b"
        ),
        "openllama-7b": Size(
            Dims(4096, 32, 32, 11_008, 32_000, 2048), published="6.7B", hub="openlm-research/open_llama_7b"
        ),
        "openllama-13b": Size(
            Dims(5120, 40, 40, 13_824, 32_000, 2048), published="13.0B", hub="openlm-research/open_llama_13b"
        ),
        "openllama-3b-v2": Size(
            Dims(3200, 26, 32, 8640, 32_000, 2048),
            {"recipe.data": SECOND_DATA},
            published="3.4B",
            hub="openlm-research/open_llama_3b_v2",
        ),
        "openllama-7b-v2": Size(
            Dims(4096, 32, 32, 11_008, 32_000, 2048),
            {"recipe.data": SECOND_DATA},
            published="6.7B",
            hub="openlm-research/open_llama_7b_v2",
        ),
    },
    about=About(
        2023,
        "OpenLLaMA: An Open Reproduction of LLaMA",
        "Geng & Liu 2023",
        note="the inner width of 3B is 8640, where LLaMA's rule would give 8704; v1's tokenizer loses repeated spaces",
    ),
)
