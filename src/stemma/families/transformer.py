"""The root: the encoder-decoder that every family descends from (Vaswani et al. 2017)."""

from stemma.declare.family import About, Family, Size, Text
from stemma.declare.objectives import Translation
from stemma.declare.recipes import AdamW, Recipe, Schedule
from stemma.nn.parts import (
    MLP,
    Arch,
    Attention,
    Causal,
    Dims,
    Dropout,
    Glorot,
    Heads,
    LayerNorm,
    LMHead,
    PostNorm,
    Sinusoidal,
)

transformer = Family(
    name="transformer",
    arch=Arch(
        structure="encoder-decoder",
        position=Sinusoidal(),
        norm=LayerNorm(1e-6),
        residual=PostNorm(),
        attention=Attention(bias=False, out_bias=False),
        mask=Causal(),
        mlp=MLP("relu"),
        heads=Heads(lm=LMHead()),
        init=Glorot(),
        dropout=Dropout(embed=0.1, residual=0.1),
        embed_scale=True,
    ),
    objective=Translation(),
    text=Text(tokenizer="bpe", eos="</s>", pad="<pad>"),
    recipe=Recipe(
        optimizer=AdamW(beta2=0.98, eps=1e-9, weight_decay=0.0),
        lr=7e-4,
        schedule=Schedule("inverse", warmup=4000),
        batch=25_000,
        steps=100_000,
        mixed=False,
        data="WMT 2014 English-German, 4.5M sentence pairs",
    ),
    sizes={
        "transformer-base": Size(Dims(512, 6, 8, 2048, 37_000, 512), published="65M"),
        "transformer-big": Size(Dims(1024, 6, 16, 4096, 37_000, 512), {"arch.dropout.residual": 0.3}, published="213M"),
    },
    about=About(
        2017,
        "Attention Is All You Need",
        "arXiv:1706.03762",
        weights="none in a layout that is read here",
        note="the root of the tree; its rates rise linearly over the first 4000 steps, then fall by 1/sqrt(step)",
    ),
)
