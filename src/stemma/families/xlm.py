"""XLM, one model of many languages, and XLM-R, which is RoBERTa of a hundred."""

from collections.abc import Mapping
from typing import Any

from stemma.declare.family import About, Size
from stemma.declare.objectives import CLM, TLM
from stemma.declare.recipes import Sampling, Schedule
from stemma.families.bert import bert, roberta
from stemma.nn.parts import Causal, Choose, Classify, Dims, Heads, LMHead, PreNorm, Summary

XNLI = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")
CASED: Mapping[str, Any] = {"text.lower": False}


def _two(vocab: int, *languages: str) -> tuple[Dims, Mapping[str, Any]]:
    """A size of two languages."""
    return Dims(1024, 6, 8, 4096, vocab, 512, languages=2), {**CASED, "text.languages": languages}


xlm = bert.evolve(
    "xlm",
    {
        "arch.heads": Heads(lm=LMHead(bias=True)),
        "arch.init.truncated": False,
        "objective.pairs": None,
        "objective.copies": 0,
        "text.tokenizer": "gpt-bpe",
        "text.bos": "<s>",
        "text.eos": "</s>",
        "text.pad": "<pad>",
        "text.unk": "<unk>",
        "text.mask": "<special1>",
        "text.cls": "</s>",
        "text.sep": "</s>",
        "text.bos_id": 0,
        "text.eos_id": 1,
        "text.pad_id": 2,
        "recipe.schedule": Schedule("inverse", warmup=30_000),
        "recipe.optimizer.corrected": True,
        "recipe.batch": None,
        "recipe.steps": None,
        "recipe.clip": 5.0,
        "recipe.mixed": True,
        "recipe.sampling": Sampling(0.7, unit="batch"),
        "recipe.data": "Wikipedia; of several languages, streams of one language each",
    },
    sizes={
        "xlm-mlm-tlm-xnli15-1024": Size(
            Dims(1024, 12, 8, 4096, 95_000, 512, languages=15),
            {"text.languages": XNLI, "objective": TLM()},
            published="250M",
            hub="FacebookAI/xlm-mlm-tlm-xnli15-1024",
        ),
        "xlm-mlm-en-2048": Size(
            Dims(2048, 12, 16, 8192, 30_145, 512), published="665M", hub="FacebookAI/xlm-mlm-en-2048"
        ),
        "xlm-mlm-ende-1024": Size(*_two(64_699, "de", "en"), hub="FacebookAI/xlm-mlm-ende-1024"),
        "xlm-mlm-enfr-1024": Size(*_two(64_139, "en", "fr"), hub="FacebookAI/xlm-mlm-enfr-1024"),
        "xlm-mlm-enro-1024": Size(*_two(64_592, "en", "ro"), hub="FacebookAI/xlm-mlm-enro-1024"),
        "xlm-mlm-xnli15-1024": Size(
            Dims(1024, 12, 8, 4096, 95_000, 512, languages=15),
            {"text.languages": XNLI},
            published="250M",
            hub="FacebookAI/xlm-mlm-xnli15-1024",
        ),
        "xlm-mlm-17-1280": Size(
            Dims(1280, 16, 16, 5120, 200_000, 512), CASED, published="570M", hub="FacebookAI/xlm-mlm-17-1280"
        ),
        "xlm-mlm-100-1280": Size(
            Dims(1280, 16, 16, 5120, 200_000, 512), CASED, published="570M", hub="FacebookAI/xlm-mlm-100-1280"
        ),
    },
    about=About(
        2019,
        "Cross-lingual Language Model Pretraining",
        "arXiv:1901.07291",
        note="token embeddings begin as N(0, 1/width); rates rise over the first 30,000 steps; those of the 17 and the "
        "100 languages, later than the paper, have no language embeddings",
    ),
    tasks={
        **bert.tasks,
        "classify": Heads(task=Classify(summary=Summary(act=None), dropout=0.1)),
        "choose": Heads(task=Choose(summary=Summary(act=None), through=2, dropout=0.1)),
    },
)

xlm_clm = xlm.evolve(
    "xlm-clm",
    {"arch.structure": "decoder", "arch.mask": Causal(), "objective": CLM()},
    sizes={
        "xlm-clm-enfr-1024": Size(*_two(64_139, "en", "fr"), hub="FacebookAI/xlm-clm-enfr-1024"),
        "xlm-clm-ende-1024": Size(*_two(64_699, "de", "en"), hub="FacebookAI/xlm-clm-ende-1024"),
    },
    about=About(
        2019,
        "Cross-lingual Language Model Pretraining",
        "arXiv:1901.07291",
        note="the same network under a causal mask: it continues a text, in a language that is named beside it",
    ),
)

xlm_roberta = roberta.evolve(
    "xlm-roberta",
    {
        "text.tokenizer": "unigram",
        "recipe.lr": None,
        "recipe.steps": 1_500_000,
        "recipe.sampling": Sampling(0.3, unit="row"),
        "recipe.data": "CC-100: 2.5 TB of Common Crawl in 100 languages, drawn with exponent 0.3",
    },
    sizes={
        "xlm-roberta-base": Size(
            Dims(768, 12, 12, 3072, 250_002, 512, segments=1),
            published="250M in its README, 270M in the paper",
            aliases=("xlm-r-base", "xlm-r"),
            hub="FacebookAI/xlm-roberta-base",
        ),
        "xlm-roberta-large": Size(
            Dims(1024, 24, 16, 4096, 250_002, 512, segments=1),
            published="560M; 550M in the paper",
            aliases=("xlm-r-large",),
            hub="FacebookAI/xlm-roberta-large",
        ),
    },
    about=About(
        2019,
        "Unsupervised Cross-lingual Representation Learning at Scale",
        "arXiv:1911.02116",
        note="no language embeddings and no translations; learning rate and warm-up are not in the paper",
    ),
    others=("xlm",),
)

xlm_roberta_xl = xlm_roberta.evolve(
    "xlm-roberta-xl",
    {
        "arch.residual": PreNorm(),
        "arch.embed_norm": False,
        "recipe.batch": 2048 * 512,
        "recipe.steps": 500_000,
    },
    sizes={
        "xlm-roberta-xl": Size(
            Dims(2560, 36, 32, 10_240, 250_880, 512, segments=1),
            published="3.5B",
            aliases=("xlm-r-xl",),
            hub="facebook/xlm-roberta-xl",
        ),
        "xlm-roberta-xxl": Size(
            Dims(4096, 48, 32, 16_384, 250_880, 512, segments=1),
            published="10.7B",
            aliases=("xlm-r-xxl",),
            hub="facebook/xlm-roberta-xxl",
        ),
    },
    about=About(
        2021,
        "Larger-Scale Transformers for Multilingual Masked Language Modeling",
        "arXiv:2105.00572",
        note="learning rate and warm-up as published for its parent: not at all",
    ),
)
