"""BERT and its changes that stay encoders."""

from stemma.declare.family import About, Size
from stemma.declare.objectives import MLM
from stemma.declare.recipes import AdamW, Schedule
from stemma.families.transformer import transformer
from stemma.nn.parts import Answer, Choose, Classify, Dims, Full, Heads, Learned, MLMHead, Normal, Summary, Tag

NAMED = {(2, 128): "tiny", (4, 256): "mini", (4, 512): "small", (8, 512): "medium"}


def _small(layers: int, width: int) -> dict[str, Size]:
    """One of the 24 small models of Turc et al. 2019 (arXiv:1908.08962)."""
    heads, number = width // 64, f"bert-l{layers}-h{width}"
    name = NAMED.get((layers, width))
    return {
        f"bert-{name}" if name else number: Size(
            Dims(width, layers, heads, 4 * width, 30_522, 512, segments=2),
            aliases=(number,) if name else (),
            hub=f"google/bert_uncased_L-{layers}_H-{width}_A-{heads}",
        )
    }


bert = transformer.evolve(
    "bert",
    {
        "arch.structure": "encoder",
        "arch.position": Learned(),
        "arch.norm.eps": 1e-12,
        "arch.attention.bias": True,
        "arch.attention.out_bias": True,
        "arch.mask": Full(),
        "arch.mlp.act": "gelu",
        "arch.heads": Heads(lm=MLMHead("gelu"), pooler=Summary(), pair=True),
        "arch.init": Normal(0.02, truncated=True),
        "arch.dropout.attention": 0.1,
        "arch.embed_norm": True,
        "arch.embed_scale": False,
        "objective": MLM(pairs="next", copies=10),
        "text.tokenizer": "wordpiece",
        "text.lower": True,
        "text.eos": None,
        "text.pad": "[PAD]",
        "text.unk": "[UNK]",
        "text.mask": "[MASK]",
        "text.cls": "[CLS]",
        "text.sep": "[SEP]",
        "text.pad_id": 0,
        "recipe.optimizer": AdamW(eps=1e-6, weight_decay=0.01, corrected=False),
        "recipe.lr": 1e-4,
        "recipe.schedule": Schedule("linear", warmup=10_000),
        "recipe.batch": 256 * 512,
        "recipe.steps": 1_000_000,
        "recipe.clip": 1.0,
        "recipe.data": "BooksCorpus (800M words) and English Wikipedia (2,500M words)",
    },
    sizes={
        "bert-base-uncased": Size(
            Dims(768, 12, 12, 3072, 30_522, 512, segments=2),
            published="110M",
            aliases=("bert-base",),
            hub="google-bert/bert-base-uncased",
        ),
        "bert-base-cased": Size(
            Dims(768, 12, 12, 3072, 28_996, 512, segments=2),
            {"text.lower": False},
            published="110M",
            hub="google-bert/bert-base-cased",
        ),
        "bert-large-uncased": Size(
            Dims(1024, 24, 16, 4096, 30_522, 512, segments=2),
            published="340M",
            aliases=("bert-large",),
            hub="google-bert/bert-large-uncased",
        ),
        "bert-large-cased": Size(
            Dims(1024, 24, 16, 4096, 28_996, 512, segments=2),
            {"text.lower": False},
            published="340M",
            hub="google-bert/bert-large-cased",
        ),
        "bert-base-multilingual-cased": Size(
            Dims(768, 12, 12, 3072, 119_547, 512, segments=2),
            {"text.lower": False},
            published="110M with 110k word pieces",
            aliases=("mbert",),
            hub="google-bert/bert-base-multilingual-cased",
        ),
        "bert-base-multilingual-uncased": Size(
            Dims(768, 12, 12, 3072, 105_879, 512, segments=2), hub="google-bert/bert-base-multilingual-uncased"
        ),
        "bert-base-chinese": Size(
            Dims(768, 12, 12, 3072, 21_128, 512, segments=2), published="110M", hub="google-bert/bert-base-chinese"
        ),
        **{k: v for place in NAMED for k, v in _small(*place).items()},
        **{
            k: v
            for layers in (2, 4, 6, 8, 10, 12)
            for width in (128, 256, 512, 768)
            if (layers, width) not in NAMED
            for k, v in _small(layers, width).items()
        },
    },
    about=About(
        2018,
        "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
        "arXiv:1810.04805",
        note="GELU: the released TensorFlow code has the tanh form, the public PyTorch checkpoints run with the exact "
        "one, which stands here; 90 % of the steps were made at 128 tokens a row",
    ),
    tasks={
        "classify": Heads(pooler=Summary(), task=Classify(dropout=0.1)),
        "tag": Heads(task=Tag(dropout=0.1)),
        "answer": Heads(task=Answer()),
        "choose": Heads(pooler=Summary(), task=Choose(dropout=0.1)),
    },
)

roberta = bert.evolve(
    "roberta",
    {
        "arch.position.padding": 1,
        "arch.norm.eps": 1e-5,
        "arch.heads.pooler": None,
        "arch.heads.pair": False,
        "objective.pairs": None,
        "objective.copies": 0,
        "text.tokenizer": "bpe",
        "text.lower": False,
        "text.bos": "<s>",
        "text.eos": "</s>",
        "text.pad": "<pad>",
        "text.unk": "<unk>",
        "text.mask": "<mask>",
        "text.cls": "<s>",
        "text.sep": "</s>",
        "text.bos_id": 0,
        "text.eos_id": 2,
        "text.pad_id": 1,
        "recipe.optimizer.beta2": 0.98,
        "recipe.optimizer.corrected": True,
        "recipe.lr": 6e-4,
        "recipe.schedule.warmup": 24_000,
        "recipe.batch": 8192 * 512,
        "recipe.steps": 500_000,
        "recipe.clip": None,
        "recipe.mixed": True,
        "recipe.data": "BooksCorpus, Wikipedia, CC-News, OpenWebText, Stories; 160 GB",
    },
    sizes={
        "roberta-base": Size(
            Dims(768, 12, 12, 3072, 50_265, 512, segments=1), published="125M", hub="FacebookAI/roberta-base"
        ),
        "roberta-large": Size(
            Dims(1024, 24, 16, 4096, 50_265, 512, segments=1),
            {"recipe.lr": 4e-4, "recipe.schedule.warmup": 30_000},
            published="355M",
            hub="FacebookAI/roberta-large",
        ),
    },
    about=About(
        2019,
        "RoBERTa: A Robustly Optimized BERT Pretraining Approach",
        "arXiv:1907.11692",
        note="one segment row, always added, is left of BERT's two; the design of the network is BERT's",
    ),
    tasks={**bert.tasks, "classify": Heads(task=Classify(summary=Summary(), dropout=0.1))},
)
