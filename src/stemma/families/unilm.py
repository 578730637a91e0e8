"""UniLM: BERT's network under four masks, so that one model reads and writes."""

from stemma.declare.family import About, Size
from stemma.declare.objectives import MixedMLM
from stemma.families.bert import bert
from stemma.nn.parts import Dims, Open

unilm = bert.evolve(
    "unilm",
    {
        "arch.mask": Open(causal=2, reverse=3, source=4, target=5),
        "objective": MixedMLM(),
        "text.lower": False,
        "text.eos": "[SEP]",
        "text.eos_id": 102,
        "text.mask_id": 103,
        "recipe.lr": 3e-5,
        "recipe.schedule.warmup": 40_000,
        "recipe.batch": 330 * 512,
        "recipe.steps": 770_000,
        "recipe.data": "English Wikipedia and BooksCorpus",
    },
    sizes={
        "unilm1-base-cased": Size(
            Dims(768, 12, 12, 3072, 28_996, 512, segments=6),
            {"recipe.lr": None, "recipe.batch": None, "recipe.steps": None},
            published="110M",
            aliases=("unilm-base-cased", "unilm-base"),
            note="its recipe is unpublished",
        ),
        "unilm1-large-cased": Size(
            Dims(1024, 24, 16, 4096, 28_996, 512, segments=6),
            published="340M",
            aliases=("unilm-large-cased", "unilm-large"),
        ),
    },
    about=About(
        2019,
        "Unified Language Model Pre-training for Natural Language Understanding and Generation",
        "arXiv:1905.03197",
        weights="public, from the authors' repository",
        note="began as BERT-large cased, the new rows of the segment table as copies of its two; it tells its masks "
        "apart by segments: 0 and 1 are read whole, 2 from left to right, 3 from right to left, 4 and 5 are a source "
        "and what is written for it; the shares of masks and n-grams are the paper's, not checked against its code",
    ),
)
