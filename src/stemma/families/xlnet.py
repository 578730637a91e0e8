"""XLNet: BERT's size on Transformer-XL's relative positions and memory, trained to predict in any order."""

from stemma.declare.family import About, Size
from stemma.declare.objectives import PLM
from stemma.families.bert import bert
from stemma.nn.parts import (
    Answer,
    Choose,
    Classify,
    Dims,
    Heads,
    LMHead,
    RelativeSinusoidal,
    Streams,
    Summary,
    Tag,
)

xlnet = bert.evolve(
    "xlnet",
    {
        "arch.position": RelativeSinusoidal(),
        "arch.attention.bias": False,
        "arch.attention.out_bias": False,
        "arch.heads": Heads(lm=LMHead(bias=True)),
        "arch.init.truncated": False,
        "arch.dropout.inner": 0.1,
        "arch.dropout.final": 0.1,
        "arch.embed_norm": False,
        "arch.streams": Streams(),
        "objective": PLM(),
        "text.tokenizer": "unigram",
        "text.lower": False,
        "text.bos": "<s>",
        "text.eos": "</s>",
        "text.pad": "<pad>",
        "text.unk": "<unk>",
        "text.mask": "<mask>",
        "text.cls": "<cls>",
        "text.sep": "<sep>",
        "text.bos_id": 1,
        "text.eos_id": 2,
        "text.pad_id": 5,
        "recipe.lr": 4e-4,
        "recipe.schedule.warmup": 40_000,
        "recipe.batch": 8192 * 512,
        "recipe.steps": 500_000,
        "recipe.data": "BooksCorpus, English Wikipedia, Giga5, ClueWeb 2012-B, Common Crawl; 32.89B pieces",
    },
    sizes={
        "xlnet-base-cased": Size(
            Dims(768, 12, 12, 3072, 32_000, 512),
            {"recipe.lr": None, "recipe.batch": None, "recipe.steps": None},
            aliases=("xlnet-base",),
            hub="xlnet/xlnet-base-cased",
            note="its recipe is unpublished; the rates and the data are those of the large one",
        ),
        "xlnet-large-cased": Size(
            Dims(1024, 24, 16, 4096, 32_000, 512),
            published="340M, as BERT",
            aliases=("xlnet-large",),
            hub="xlnet/xlnet-large-cased",
        ),
    },
    about=About(
        2019,
        "XLNet: Generalized Autoregressive Pretraining for Language Understanding",
        "arXiv:1906.08237",
        note="Transformer-XL (arXiv:1901.02860) gave it positions and memory; pretraining kept 384 tokens in memory, "
        "256 of each row (repository), the public files set no limit; GELU: the tanh form in the TensorFlow code, the "
        "exact one in the public PyTorch checkpoints, which stands here; texts are padded on the left, <cls> is last; "
        "the released rows hold A and B, half of the time not consecutive, and nothing predicts which",
    ),
    tasks={
        "classify": Heads(pooler=Summary("final"), task=Classify(dropout=0.1)),
        "tag": Heads(task=Tag()),
        "answer": Heads(task=Answer()),
        "choose": Heads(pooler=Summary("final"), task=Choose(dropout=0.1)),
    },
)
