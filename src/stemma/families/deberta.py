"""DeBERTa and its two later versions: distances apart from contents."""

from collections.abc import Mapping

from stemma.declare.family import About, Size
from stemma.declare.objectives import MLM, RTD, NGrams
from stemma.families.bert import roberta
from stemma.nn.parts import (
    Answer,
    Choose,
    Classify,
    ContextDetector,
    Convolution,
    Dims,
    Disentangled,
    EMDHead,
    Heads,
    Summary,
    Tag,
)

deberta = roberta.evolve(
    "deberta",
    {
        "arch.position": Disentangled(512),
        "arch.norm.eps": 1e-7,
        "arch.attention.key_bias": False,
        "arch.heads.lm": EMDHead(),
        "arch.init.truncated": False,
        "text.bos": None,
        "text.eos": None,
        "text.pad": "[PAD]",
        "text.unk": "[UNK]",
        "text.mask": "[MASK]",
        "text.cls": "[CLS]",
        "text.sep": "[SEP]",
        "text.bos_id": None,
        "text.eos_id": None,
        "text.pad_id": 0,
        "objective.unit": NGrams(drawn="windows"),
        "recipe.optimizer.beta2": 0.999,
        "recipe.lr": 2e-4,
        "recipe.schedule.warmup": 10_000,
        "recipe.batch": 2048 * 512,
        "recipe.steps": 1_000_000,
        "recipe.clip": 1.0,
        "recipe.data": "Wikipedia, BooksCorpus, OpenWebText, Stories; 78 GB without duplicates",
    },
    sizes={
        "deberta-base": Size(Dims(768, 12, 12, 3072, 50_265, 512), published="140M", hub="microsoft/deberta-base"),
        "deberta-large": Size(Dims(1024, 24, 16, 4096, 50_265, 512), published="400M", hub="microsoft/deberta-large"),
        "deberta-xlarge": Size(Dims(1024, 48, 16, 4096, 50_265, 512), published="750M", hub="microsoft/deberta-xlarge"),
    },
    about=About(
        2020,
        "DeBERTa: Decoding-enhanced BERT with Disentangled Attention",
        "arXiv:2006.03654",
        note="the reference in transformers leaves the enhanced mask decoder out and runs BERT's head on the last "
        "hidden state",
    ),
    tasks={
        "classify": Heads(pooler=Summary(act="gelu"), task=Classify(dropout=0.1)),
        "tag": Heads(task=Tag(dropout=0.1)),
        "answer": Heads(task=Answer()),
    },
)

deberta_v2 = deberta.evolve(
    "deberta-v2",
    {
        "arch.position.buckets": 256,
        "arch.position.shared": True,
        "arch.position.norm": True,
        "arch.attention.key_bias": True,
        "arch.convolution": Convolution(3, "gelu"),
        "text.tokenizer": "unigram",
        "recipe.lr": None,
        "recipe.batch": None,
        "recipe.steps": None,
        "recipe.data": "that of DeBERTa and CC-News; 160 GB",
    },
    sizes={
        "deberta-v2-xlarge": Size(
            Dims(1536, 24, 24, 6144, 128_100, 512), published="900M", hub="microsoft/deberta-v2-xlarge"
        ),
        "deberta-v2-xxlarge": Size(
            Dims(1536, 48, 24, 6144, 128_100, 512), published="1.5B", hub="microsoft/deberta-v2-xxlarge"
        ),
    },
    about=About(
        2021,
        "DeBERTa: Decoding-enhanced BERT with Disentangled Attention, version 2",
        "arXiv:2006.03654, section 5.2 and appendix; github.com/microsoft/DeBERTa",
        note="the paper calls the convolution n-gram induced input encoding; rate, batch and steps are unpublished",
    ),
    tasks={**deberta.tasks, "choose": Heads(pooler=Summary(act="gelu"), task=Choose(dropout=0.1))},
)


V3 = {
    "xsmall": (Dims(384, 12, 6, 1536, 128_100, 512), "22M and 48M of embeddings"),
    "small": (Dims(768, 6, 12, 3072, 128_100, 512), "44M and 98M of embeddings"),
    "base": (Dims(768, 12, 12, 3072, 128_100, 512), "86M and 98M of embeddings"),
    "large": (Dims(1024, 24, 16, 4096, 128_100, 512), "304M and 131M of embeddings"),
}
MULTILINGUAL = Dims(768, 12, 12, 3072, 251_000, 512)
CC100 = {"recipe.data": "CC100, 102 languages, 2.5 TB"}


def _generator(name: str, dims: Dims, changes: Mapping[str, object] | None = None) -> dict[str, Size]:
    """The generator of a model: as wide, half as deep, trained to fill masks."""
    half = Dims(dims.d_model, dims.layers // 2, dims.heads, dims.d_ff, dims.vocab, dims.context)
    alone = {
        "arch.heads.lm": EMDHead(),
        "arch.heads.detect": None,
        "objective": MLM(masked=1.0, random=0.0),
    }
    note = f"in pytorch_model.generator.bin of microsoft/{name}"
    return {f"{name}-generator": Size(half, alone | dict(changes or {}), note=note)}


deberta_v3 = deberta_v2.evolve(
    "deberta-v3",
    {
        "arch.convolution": None,
        "arch.heads.lm": None,
        "arch.heads.detect": ContextDetector(),
        "objective": RTD("deberta-v3-base-generator", masked=1.0, sharing="disentangled"),
    },
    sizes={
        **{
            f"deberta-v3-{size}": Size(
                dims,
                {"objective.generator": f"deberta-v3-{size}-generator"},
                published=published,
                hub=f"microsoft/deberta-v3-{size}",
            )
            for size, (dims, published) in V3.items()
        },
        "mdeberta-v3-base": Size(
            MULTILINGUAL,
            {"objective.generator": "mdeberta-v3-base-generator"} | CC100,
            published="86M and 190M of embeddings",
            aliases=("mdeberta", "mdeberta-base"),
            hub="microsoft/mdeberta-v3-base",
        ),
        **{k: v for size, (dims, _) in V3.items() for k, v in _generator(f"deberta-v3-{size}", dims).items()},
        **_generator("mdeberta-v3-base", MULTILINGUAL, CC100),
    },
    about=About(
        2021,
        "DeBERTaV3: Improving DeBERTa using ELECTRA-Style Pre-Training with Gradient-Disentangled Embedding Sharing",
        "arXiv:2111.09543",
        note="the network is the second version's without the convolution; the weight of the loss is 50 in the paper, "
        "10 by default in the released code; rate, batch and steps are not checked against the paper and left out",
    ),
)
