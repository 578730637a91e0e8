"""ALBERT: BERT with narrow embeddings and one set of weights for all layers."""

from stemma.declare.family import About, Size
from stemma.declare.objectives import MLM, NGrams
from stemma.declare.recipes import LAMB
from stemma.families.bert import bert
from stemma.nn.parts import Dims

BASE = Dims(768, 12, 12, 3072, 30_000, 512, segments=2, embed=128, groups=1)
LARGE = Dims(1024, 24, 16, 4096, 30_000, 512, segments=2, embed=128, groups=1)
XLARGE = Dims(2048, 24, 16, 8192, 30_000, 512, segments=2, embed=128, groups=1)
XXLARGE = Dims(4096, 12, 64, 16_384, 30_000, 512, segments=2, embed=128, groups=1)

albert = bert.evolve(
    "albert",
    {
        "arch.dropout.pair": 0.1,
        "objective": MLM(unit=NGrams(), pairs="order", copies=40, most=20),
        "text.tokenizer": "unigram",
        "text.bos": "[CLS]",
        "text.eos": "[SEP]",
        "text.pad": "<pad>",
        "text.unk": "<unk>",
        "text.bos_id": 2,
        "text.eos_id": 3,
        "recipe.optimizer": LAMB(corrected=False),
        "recipe.lr": 1.76e-3,
        "recipe.schedule.warmup": 3125,
        "recipe.batch": 4096 * 512,
        "recipe.steps": 125_000,
    },
    sizes={
        "albert-base-v1": Size(BASE, published="12M", hub="albert/albert-base-v1"),
        "albert-large-v1": Size(LARGE, published="18M", hub="albert/albert-large-v1"),
        "albert-xlarge-v1": Size(XLARGE, published="60M", hub="albert/albert-xlarge-v1"),
        "albert-xxlarge-v1": Size(
            XXLARGE,
            {
                "arch.dropout.embed": 0.0,
                "arch.dropout.residual": 0.0,
                "arch.dropout.attention": 0.0,
                "recipe.steps": 1_500_000,
            },
            published="235M",
            hub="albert/albert-xxlarge-v1",
        ),
    },
    about=About(
        2019,
        "ALBERT: A Lite BERT for Self-supervised Learning of Language Representations",
        "arXiv:1909.11942",
        note="narrow embeddings and shared layers are widths of its sizes; the public PyTorch files run with the exact "
        "GELU, as BERT's; xlarge ships with 16 heads, where the paper's text implies 32; the released command "
        "predicts at most 20 tokens of a row, also of one of 512",
    ),
)

albert_v2 = albert.evolve(
    "albert-v2",
    {
        "arch.mlp.act": "gelu_tanh",
        "arch.heads.lm.act": "gelu_tanh",
        "arch.dropout.embed": 0.0,
        "arch.dropout.residual": 0.0,
        "arch.dropout.attention": 0.0,
        "recipe.steps": 3_000_000,
        "recipe.data": "BooksCorpus, Wikipedia, and the additional data of XLNet and RoBERTa",
    },
    sizes={
        "albert-base-v2": Size(BASE, {"recipe.steps": 10_000_000}, "12M", hub="albert/albert-base-v2"),
        "albert-large-v2": Size(LARGE, published="18M", hub="albert/albert-large-v2"),
        "albert-xlarge-v2": Size(XLARGE, published="60M", hub="albert/albert-xlarge-v2"),
        "albert-xxlarge-v2": Size(XXLARGE, published="235M", hub="albert/albert-xxlarge-v2"),
    },
    about=About(
        2019,
        "ALBERT: A Lite BERT for Self-supervised Learning of Language Representations",
        "arXiv:1909.11942; github.com/google-research/albert, version 2",
        note="no dropout, more data and longer training; the public PyTorch files run with the tanh form of GELU",
    ),
)
