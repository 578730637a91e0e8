"""Gemma 1, 2 and 3: the text models."""

from stemma.declare.family import About, Size
from stemma.families.llama import llama2
from stemma.nn.parts import Causal, Cycle, Dims, LinearScaling, RMSNorm, Rotary, Sandwich, Sliding

gemma = llama2.evolve(
    "gemma",
    {
        "arch.norm": RMSNorm(1e-6, offset=True),
        "arch.mlp.act": "gelu_tanh_fused",
        "arch.heads.lm.tied": True,
        "arch.embed_scale": True,
        "text.bos": "<bos>",
        "text.eos": "<eos>",
        "text.pad": "<pad>",
        "text.bos_id": 2,
        "text.eos_id": 1,
        "text.pad_id": 0,
        "recipe.lr": None,
        "recipe.batch": None,
        "recipe.data": "web text, mathematics and code, mostly English; 3T tokens (2B), 6T (7B)",
    },
    sizes={
        "gemma-2b": Size(
            Dims(2048, 18, 8, 16_384, 256_000, 8192, kv_heads=1, head_dim=256), published="2.5B", hub="google/gemma-2b"
        ),
        "gemma-7b": Size(
            Dims(3072, 28, 16, 24_576, 256_000, 8192, head_dim=256), published="8.5B", hub="google/gemma-7b"
        ),
    },
    about=About(
        2024,
        "Gemma: Open Models Based on Gemini Research and Technology",
        "arXiv:2403.08295",
        note="descends from Gemini, whose design is unpublished: LLaMA-2 is the nearest that is known",
    ),
)

gemma2 = gemma.evolve(
    "gemma2",
    {
        "arch.residual": Sandwich(),
        "arch.mask": Cycle((Sliding(4096), Causal())),
        "arch.attention.scale_width": 256.0,
        "arch.attention.softcap": 50.0,
        "arch.heads.lm.softcap": 30.0,
        "recipe.data": "web text, code and science; 13T tokens (27B), 8T (9B), 2T (2B), the smaller two distilled",
    },
    sizes={
        "gemma2-2b": Size(
            Dims(2304, 26, 8, 9216, 256_000, 8192, kv_heads=4, head_dim=256),
            published="2.6B",
            hub="google/gemma-2-2b",
        ),
        "gemma2-9b": Size(
            Dims(3584, 42, 16, 14_336, 256_000, 8192, kv_heads=8, head_dim=256),
            published="9.2B",
            hub="google/gemma-2-9b",
        ),
        "gemma2-27b": Size(
            Dims(4608, 46, 32, 36_864, 256_000, 8192, kv_heads=16, head_dim=128),
            {"arch.attention.scale_width": 144.0},
            published="27.2B",
            hub="google/gemma-2-27b",
        ),
    },
    about=About(
        2024,
        "Gemma 2: Improving Open Language Models at a Practical Size",
        "arXiv:2408.00118",
        note="scores of 27B are divided by sqrt(144) = sqrt(d_model / heads), as recalled from its file",
    ),
)

TEXT = "the text part of a model that sees images too, in whose files it has another layout"
LONG = {"arch.mask": Cycle((Sliding(1024),) * 5 + (Causal(),)), "arch.position.scaling": LinearScaling(8.0)}

gemma3 = gemma2.evolve(
    "gemma3",
    {
        "arch.attention.qk_norm": RMSNorm(1e-6, offset=True),
        "arch.attention.softcap": None,
        "arch.heads.lm.softcap": None,
        "arch.mask": Cycle((Sliding(512),) * 5 + (Causal(),)),
        "arch.position.base": 1e6,
        "arch.local": Rotary(10_000.0),
        "recipe.data": "text in many languages and images; 14T tokens (27B), 12T (12B), 4T (4B), 2T (1B), distilled",
    },
    sizes={
        "gemma3-270m": Size(
            Dims(640, 18, 4, 2048, 262_144, 32_768, kv_heads=1, head_dim=256),
            published="268M",
            hub="google/gemma-3-270m",
        ),
        "gemma3-1b": Size(
            Dims(1152, 26, 4, 6912, 262_144, 32_768, kv_heads=1, head_dim=256),
            published="1.0B",
            hub="google/gemma-3-1b-pt",
        ),
        "gemma3-4b": Size(
            Dims(2560, 34, 8, 10_240, 262_208, 131_072, kv_heads=4, head_dim=256),
            LONG,
            published="3.9B",
            note=TEXT,
        ),
        "gemma3-12b": Size(
            Dims(3840, 48, 16, 15_360, 262_208, 131_072, kv_heads=8, head_dim=256),
            LONG,
            published="11.8B",
            note=TEXT,
        ),
        "gemma3-27b": Size(
            Dims(5376, 62, 32, 21_504, 262_208, 131_072, kv_heads=16, head_dim=128),
            {**LONG, "arch.attention.scale_width": 168.0},
            published="27.0B",
            note=TEXT,
        ),
    },
    about=About(
        2025,
        "Gemma 3 Technical Report",
        "arXiv:2503.19786",
        note="the text models; of 4B and up, the scaling of positions by 8 and 27B's sqrt(168) are recalled",
    ),
)
