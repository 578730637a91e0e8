"""ELECTRA: a BERT that tells replaced tokens from true ones, and the small BERT that replaces them."""

from stemma.declare.family import About, Size
from stemma.declare.objectives import MLM, RTD
from stemma.families.bert import bert
from stemma.nn.parts import Choose, Classify, Detector, Dims, Heads, MLMHead, Summary

TITLE = "ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators"
BASE = {"recipe.lr": 2e-4, "recipe.batch": 256 * 512, "recipe.steps": 766_000}
LARGE = {"recipe.lr": 2e-4, "recipe.batch": 2048 * 512, "recipe.steps": 1_750_000, "objective.rate": 0.25}
XLNET = {"recipe.data": "the data of XLNet, 33B tokens"}

TASKS = {
    **bert.tasks,
    "classify": Heads(task=Classify(summary=Summary(act="gelu"), dropout=0.1)),
    "choose": Heads(task=Choose(summary=Summary(act="gelu", dropout=0.0), dropout=0.1)),
}

electra = bert.evolve(
    "electra",
    {
        "arch.heads": Heads(detect=Detector()),
        "objective": RTD("electra-small-generator", pairs="halves"),
        "recipe.lr": 5e-4,
        "recipe.batch": 128 * 128,
    },
    sizes={
        "electra-small": Size(
            Dims(256, 12, 4, 1024, 30_522, 512, segments=2, embed=128),
            published="14M",
            aliases=("electra-small-discriminator",),
            hub="google/electra-small-discriminator",
            note="the released one was trained beside a generator of its own width, the paper's beside a quarter of it",
        ),
        "electra-base": Size(
            Dims(768, 12, 12, 3072, 30_522, 512, segments=2),
            {**BASE, "objective.generator": "electra-base-generator"},
            published="110M",
            aliases=("electra-base-discriminator",),
            hub="google/electra-base-discriminator",
        ),
        "electra-large": Size(
            Dims(1024, 24, 16, 4096, 30_522, 512, segments=2),
            {**LARGE, **XLNET, "objective.generator": "electra-large-generator"},
            published="335M",
            aliases=("electra-large-discriminator",),
            hub="google/electra-large-discriminator",
        ),
    },
    about=About(
        2020,
        TITLE,
        "arXiv:2003.10555",
        note="generator and discriminator share all of their embeddings while they are trained",
    ),
    tasks=TASKS,
)

generator = bert.evolve(
    "electra-generator",
    {
        "arch.heads": Heads(lm=MLMHead()),
        "objective": MLM(masked=0.85, random=0.0, pairs="halves"),
        "recipe.lr": 5e-4,
        "recipe.batch": 128 * 128,
    },
    sizes={
        "electra-small-generator": Size(
            Dims(256, 12, 4, 1024, 30_522, 512, segments=2, embed=128), hub="google/electra-small-generator"
        ),
        "electra-small-generator-paper": Size(
            Dims(64, 12, 1, 256, 30_522, 512, segments=2, embed=128),
            note="a quarter of the discriminator, as the paper has it; never released",
        ),
        "electra-base-generator": Size(
            Dims(256, 12, 4, 1024, 30_522, 512, segments=2, embed=768), BASE, hub="google/electra-base-generator"
        ),
        "electra-large-generator": Size(
            Dims(256, 24, 4, 1024, 30_522, 512, segments=2, embed=1024),
            {**LARGE, **XLNET},
            hub="google/electra-large-generator",
        ),
    },
    about=About(
        2020,
        TITLE,
        "arXiv:2003.10555",
        note="trained together with the discriminator of its name; embeddings are as wide as that one's, the network "
        "is a quarter or a third of it",
    ),
    tasks=TASKS,
)
