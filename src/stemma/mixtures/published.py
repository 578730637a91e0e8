"""The mixtures as published, and the clusters of FLAN 2021.

Sources: Wei et al. 2021 (figure 3, section 2.2; google-research/FLAN, flan/task_splits.py and mixtures.py); Chung et
al. 2022 (section 2, appendix E); google-research/FLAN, flan/v2 (mixtures.py, run_example.py, few_shot.py);
allenai/open-instruct, scripts/data/sft_v1_v2/resample_flan_v2.py."""

from __future__ import annotations

from collections.abc import Iterable

from stemma.errors import UsageError, did_you_mean
from stemma.mixtures.forms import FEW, FEW_OPEN, ZERO, ZERO_OPEN
from stemma.mixtures.rates import Mixture, Part

# the 62 sets of FLAN 2021 by cluster
CLUSTERS: dict[str, tuple[str, ...]] = {
    "natural language inference": ("anli", "cb", "mnli", "qnli", "rte", "snli", "wnli"),
    "commonsense": ("copa", "hellaswag", "piqa", "story_cloze"),
    "sentiment": ("imdb", "sent140", "sst2", "yelp"),
    "paraphrase": ("mrpc", "qqp", "paws", "stsb"),
    "closed-book qa": ("arc", "natural_questions", "trivia_qa"),
    "struct to text": ("common_gen", "dart", "e2e_nlg", "web_nlg"),
    "reading comprehension": ("bool_q", "drop", "multirc", "openbookqa", "squad"),
    "reading comprehension with commonsense": ("cosmos_qa", "record"),
    "coreference": ("dpr", "winogrande", "wsc273"),
    "miscellaneous": ("coqa", "quac", "wic", "trec", "cola", "math", "fix_punct"),
    "summarization": (
        "aeslc", "ag_news", "cnn_dm", "gigaword", "multi_news", "newsroom", "opinion_abstracts_idebate",
        "opinion_abstracts_movie", "samsum", "wiki_lingua", "xsum",
    ),
    "translation": (
        "para_crawl_en_es", "wmt14_en_fr", "wmt16_en_cs", "wmt16_en_de", "wmt16_en_fi", "wmt16_en_ro", "wmt16_en_ru",
        "wmt16_en_tr",
    ),
}  # fmt: skip
# clusters that are left out with one that is held out, since they are like it (section 2.2)
LIKE: dict[str, tuple[str, ...]] = {
    "natural language inference": ("paraphrase",),
    "paraphrase": ("natural language inference",),
    "commonsense": ("reading comprehension with commonsense",),
    "reading comprehension": ("reading comprehension with commonsense",),
    "reading comprehension with commonsense": ("reading comprehension", "commonsense"),
}
# the sets with chains of thought that the Flan repository holds; their clusters are named here
REASONING = {
    "gsm8k": "arithmetic", "aqua": "arithmetic", "creak": "commonsense", "ecqa": "commonsense",
    "sensemaking": "commonsense", "qasc": "multi-hop", "strategyqa": "multi-hop",
    "esnli": "natural language inference", "qed": "closed-book qa",
}  # fmt: skip
FLAN, T0, NATURAL, COT, DIALOGUE = "flan", "t0", "niv2", "cot", "dialog"
COLLECTIONS = (FLAN, T0, NATURAL, COT, DIALOGUE)

FOUR = ((ZERO, 0.25), (FEW, 0.25), (ZERO_OPEN, 0.25), (FEW_OPEN, 0.25))
TWO = ((ZERO, 0.5), (FEW, 0.5))  # chains of thought, dialogues and Natural Instructions have none without options
MMLU = ("mmlu",)  # of Natural Instructions, the tasks made of the test


def _paper(muffin: float, t0: float, natural: float, cot: float) -> tuple[Part, ...]:
    return (
        Part(FLAN, muffin, 30_000, FOUR, tasks=80),
        Part(T0, t0, 20_000, FOUR, tasks=193),
        Part(NATURAL, natural, 5_000, TWO, tasks=1554, without=MMLU),
        Part(COT, cot, 100_000, TWO, inverted=0.3, tasks=9),
    )


MIXTURES = {
    mixture.name: mixture
    for mixture in (
        Mixture(
            "flan2021",
            "FLAN 2021: 62 sets, zero-shot with options",
            (Part(FLAN, None, 30_000, ((ZERO, 1.0),), tasks=62),),
            maximum=3_000,
            inputs=1024,
            targets=256,
        ),
        Mixture("flan2022-a", "Flan-PaLM's paper, proportions of its ablations", _paper(0.52, 0.15, 0.30, 0.03)),
        Mixture("flan2022-b", "Flan-PaLM's paper, final proportions", _paper(0.46, 0.279, 0.242, 0.018)),
        Mixture(
            "flan2022",
            "the Flan collection as released, with dialogues",
            (
                Part(FLAN, 0.40, 30_000, FOUR),
                Part(T0, 0.32, 20_000, FOUR),
                Part(NATURAL, 0.20, 5_000, TWO, without=MMLU),
                Part(COT, 0.05, 100_000, TWO, inverted=0.3),
                Part(DIALOGUE, 0.03, 200_000, TWO, inverted=0.3),
            ),
        ),
        Mixture(
            "flan2022-tulu2",
            "what Tulu 2 draws of the Flan collection: few-shot rows, no dialogues",
            (
                Part(FLAN, 0.40, 30_000, ((FEW, 0.5), (FEW_OPEN, 0.5))),
                Part(T0, 0.32, 20_000, ((FEW, 0.5), (FEW_OPEN, 0.5))),
                Part(NATURAL, 0.23, 5_000, ((FEW, 1.0),), without=MMLU),
                Part(COT, 0.05, 100_000, ((FEW, 1.0),), inverted=0.3),
            ),
        ),
    )
}


def mixture(name: str) -> Mixture:
    """The mixture called `name`. Raises UsageError if there is none."""
    if name not in MIXTURES:
        raise UsageError(f"no mixture is called {name!r}; known: {', '.join(MIXTURES)}{did_you_mean(name, MIXTURES)}")
    return MIXTURES[name]


def cluster_of(task: str) -> str:
    """The cluster of a set of FLAN 2021 or of the chains of thought; empty for others."""
    return next((c for c, names in CLUSTERS.items() if task in names), REASONING.get(task, ""))


def left_out(clusters: Iterable[str], there: Iterable[str]) -> tuple[str, ...]:
    """The clusters that nothing is learnt of where `clusters` are held out: these, and those that are like them. Raises
    UsageError for one that is not `there`."""
    known, found = sorted({*there}), list[str]()
    for cluster in clusters:
        if cluster not in known:
            raise UsageError(
                f"no task is of the cluster {cluster!r}; there are {', '.join(known)}{did_you_mean(cluster, known)}"
            )
        found += [cluster, *LIKE.get(cluster, ())]
    return tuple(dict.fromkeys(found))
