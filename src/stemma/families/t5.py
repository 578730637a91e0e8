"""T5 and what came of it: every task as text to text."""

from stemma.declare.family import About, Size
from stemma.declare.objectives import Denoisers, PrefixLM, Spans
from stemma.declare.recipes import Adafactor, Sampling, Schedule
from stemma.declare.tuning import SFT, Pretraining, Source, Tuning
from stemma.families import templates
from stemma.families.transformer import transformer
from stemma.nn.parts import (
    Answer,
    Buckets,
    Classify,
    Dims,
    Dropout,
    FanIn,
    GatedMLP,
    Heads,
    LayerBuckets,
    LMHead,
    PreNorm,
    RMSNorm,
    Summary,
    Tag,
)

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
        "arch.init": FanIn(),
        "objective": Spans(0.15, 3.0),
        "text.tokenizer": "unigram",
        "text.unk": "<unk>",
        "text.sentinels": 100,
        "text.eos_id": 1,
        "text.pad_id": 0,
        "text.start_id": 0,
        "recipe.optimizer": Adafactor(),
        "recipe.lr": 1e-2,
        "recipe.schedule": Schedule("rsqrt", warmup=10_000),
        "recipe.batch": 2048 * 512,
        "recipe.steps": 1_000_000,
        "recipe.mixed": True,
        "recipe.z_loss": 1e-4,
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
        note="the peak rate is 1/sqrt(10,000), held for the first 10,000 steps; the z-loss is that of the released "
        "operative_config.gin",
    ),
    tasks={
        "classify": Heads(task=Classify(summary=Summary("end"))),
        "tag": Heads(task=Tag()),
        "answer": Heads(task=Answer()),
    },
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

t5_lm = t5_v1_1.trained(
    "t5-lm",
    {
        "objective": PrefixLM(),
        "recipe.steps": 100_000,
    },
    sizes={
        f"t5-lm-{size}": Size(
            t5_v1_1[size].dims,
            published=published,
            aliases=(f"t5-{size}-lm-adapt", f"t5-v1.1-{size}-lm-adapt"),
            hub=f"google/t5-{size}-lm-adapt",
        )
        for size, published in (("small", "77M"), ("base", "250M"), ("large", "800M"), ("xl", "3B"), ("xxl", "11B"))
    },
    about=About(
        2021,
        "The Power of Scale for Parameter-Efficient Prompt Tuning",
        "arXiv:2104.08691; released_checkpoints.md",
        note="100,000 steps more, on predicting the rest of a text",
    ),
    tuning=Tuning(
        (Pretraining("text", stand_in="builtin:docs"),),
        "C4, to predict the rest of a text",
        stand_ins="builtin:docs in place of C4",
    ),
)

flan_t5 = t5_lm.trained(
    "flan-t5",
    {
        "recipe.lr": 5e-4,
        "recipe.schedule": Schedule("constant"),
        "recipe.batch": None,
        "recipe.steps": 98_000,
        "recipe.data": "the Flan collection: 1,836 tasks with instructions, some with examples and chains of thought",
    },
    sizes={
        "flan-t5-small": Size(t5_v1_1["small"].dims, published="80M", hub="google/flan-t5-small"),
        "flan-t5-base": Size(
            t5_v1_1["base"].dims, {"recipe.steps": 84_000}, published="250M", hub="google/flan-t5-base"
        ),
        "flan-t5-large": Size(
            t5_v1_1["large"].dims, {"recipe.steps": 64_000}, published="780M", hub="google/flan-t5-large"
        ),
        "flan-t5-xl": Size(t5_v1_1["xl"].dims, {"recipe.steps": 38_000}, published="3B", hub="google/flan-t5-xl"),
        "flan-t5-xxl": Size(t5_v1_1["xxl"].dims, {"recipe.steps": 14_000}, published="11B", hub="google/flan-t5-xxl"),
    },
    about=About(
        2022,
        "Scaling Instruction-Finetuned Language Models",
        "arXiv:2210.11416",
        note="the objective is to predict the answer from the instruction; batches of 64 packed rows, dropout 0.05",
    ),
    tuning=Tuning(
        (
            SFT(
                "completions",
                templates.FLAN,
                (
                    Source("Muffin", 0.46, cap=30_000),
                    Source("T0-SF", 0.279, cap=20_000),
                    Source("Natural Instructions v2", 0.242, cap=5_000),
                    Source("chains of thought", 0.018, cap=100_000),
                ),
                examples=64,
                warmup=0.0,
                packed=True,
                loss_on="answers",
                inputs=2048,
                targets=512,
                steps=(98_000, 84_000, 64_000, 38_000, 14_000),
                remembered=("inputs", "targets"),  # those of the released mixtures
                changes=tuple(
                    (f"arch.dropout.{place}", 0.05) for place in ("embed", "residual", "attention", "inner", "final")
                ),
                stand_in="builtin:flan2022",
            ),
        ),
        "the Flan collection: Muffin 46 %, T0-SF 27.9 %, Natural Instructions v2 24.2 %, chains of thought 1.8 %",
        "the task's own words to the encoder, the answer from the decoder",
        result="MMLU, five-shot: 25.7 before and 52.4 after at 3B (recalled)",
        stand_ins="builtin:flan2022, 36 small tasks in eleven clusters in the four forms, three of them with chains of "
        "thought; `stemma data mixture flan2022-b` makes the published mixture of your own sets",
    ),
)

mt5 = t5_v1_1.evolve(
    "mt5",
    {
        "recipe.sampling": Sampling(0.3, unit="row"),
        "recipe.data": "mC4: 101 languages, each drawn by its size to the power of 0.3; about 1T tokens",
    },
    sizes={
        "mt5-small": Size(Dims(512, 8, 6, 1024, 250_112, 1024, head_dim=64), published="300M", hub="google/mt5-small"),
        "mt5-base": Size(Dims(768, 12, 12, 2048, 250_112, 1024), published="580M", hub="google/mt5-base"),
        "mt5-large": Size(Dims(1024, 24, 16, 2816, 250_112, 1024), published="1.2B", hub="google/mt5-large"),
        "mt5-xl": Size(Dims(2048, 24, 32, 5120, 250_112, 1024), published="3.7B", hub="google/mt5-xl"),
        "mt5-xxl": Size(Dims(4096, 24, 64, 10_240, 250_112, 1024), published="13B", hub="google/mt5-xxl"),
    },
    about=About(
        2020,
        "mT5: A massively multilingual pre-trained text-to-text transformer",
        "arXiv:2010.11934",
        note="100 sentinels at the end of the vocabulary, as in T5",
    ),
)

umt5 = mt5.evolve(
    "umt5",
    {
        "arch.position": LayerBuckets(32, 128),
        "recipe.sampling": Sampling(0.0, epochs=10.0, unit="row"),
        "recipe.data": "mC4 again: 107 languages, each as often as the others until its text has been seen 10 times",
    },
    sizes={
        "umt5-small": Size(Dims(512, 8, 6, 1024, 256_384, 1024, head_dim=64), hub="google/umt5-small"),
        "umt5-base": Size(Dims(768, 12, 12, 2048, 256_384, 1024), hub="google/umt5-base"),
        "umt5-xl": Size(Dims(2048, 24, 32, 5120, 256_384, 1024), published="3.7B", hub="google/umt5-xl"),
        "umt5-xxl": Size(Dims(4096, 24, 64, 10_240, 256_384, 1024), published="13B", hub="google/umt5-xxl"),
    },
    about=About(
        2023,
        "UniMax: Fairer and more Effective Language Sampling for Large-Scale Multilingual Pretraining",
        "arXiv:2304.09151",
        note="widths and the vocabulary (256,000 pieces, sentinels, padding) as remembered of the public configs, not "
        "checked against the files; whether their head is scaled is what each config says",
    ),
)

ul2 = t5_v1_1.evolve(
    "ul2",
    {
        "arch.mlp": GatedMLP("silu"),
        "objective": Denoisers(),
        "text.extras": ("[NLU]", "[NLG]", "[S2S]"),
        "recipe.batch": 1024 * 512,
        "recipe.steps": 2_000_000,
        "recipe.data": "C4, about 1T tokens",
    },
    sizes={"ul2-20b": Size(Dims(4096, 32, 16, 16_384, 32_128, 512, head_dim=256), published="20B", hub="google/ul2")},
    about=About(
        2022,
        "UL2: Unifying Language Learning Paradigms",
        "arXiv:2205.05131",
        note="published as model_type t5; the sequential denoiser (S) is a prefix language model on the last quarter",
    ),
)
