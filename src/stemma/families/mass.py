"""MASS: an encoder sees a text with a run of it masked, a decoder writes the run."""

from stemma.declare.family import About, Size
from stemma.declare.objectives import Fragment
from stemma.declare.recipes import AdamW, Schedule
from stemma.families.transformer import transformer
from stemma.nn.parts import Dims, Dropout, Learned, Normal

mass = transformer.evolve(
    "mass",
    {
        "arch.position": Learned(padding=0),
        "arch.norm.eps": 1e-5,
        "arch.attention.bias": True,
        "arch.attention.out_bias": True,
        "arch.mlp.act": "gelu",
        "arch.init": Normal(0.02),
        "arch.dropout": Dropout(embed=0.1, residual=0.1, attention=0.1, inner=0.1),
        "arch.embed_norm": True,
        "objective": Fragment(0.5, start=0.0, end=0.0, block=64),
        "text.tokenizer": "wordpiece",
        "text.lower": True,
        "text.bos": "[CLS]",
        "text.eos": "[SEP]",
        "text.pad": "[PAD]",
        "text.unk": "[UNK]",
        "text.mask": "[MASK]",
        "text.cls": "[CLS]",
        "text.sep": "[SEP]",
        "text.bos_id": 101,
        "text.eos_id": 102,
        "text.pad_id": 0,
        "text.start_id": 102,
        "recipe.optimizer": AdamW(beta2=0.98, eps=1e-6, weight_decay=0.01),
        "recipe.lr": 5e-4,
        "recipe.schedule": Schedule("linear", warmup=10_000),
        "recipe.batch": 4096 * 512,
        "recipe.steps": 125_000,
        "recipe.mixed": True,
        "recipe.data": "Wikipedia and BooksCorpus",
    },
    sizes={
        "mass-base-uncased": Size(Dims(768, 6, 12, 3072, 30_522, 512), published="123M", aliases=("mass-base",)),
        "mass-middle-uncased": Size(Dims(1024, 6, 16, 4096, 30_522, 512), published="208M", aliases=("mass-middle",)),
    },
    about=About(
        2019,
        "MASS: Masked Sequence to Sequence Pre-training for Language Generation",
        "arXiv:1905.02450; github.com/microsoft/MASS, MASS-summarization",
        weights="github.com/microsoft/MASS, in fairseq's layout",
        note="the released code masks runs within blocks of 64 tokens, and 15 % of them where its flag is left out; "
        "the paper's half stands here",
    ),
    others=("bert",),
)
