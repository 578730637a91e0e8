"""Stemma: the family tree of language models, as running code.

    import stemma
    m = stemma.load("path/or/hub-id")
    stemma.generate(m, ["Once upon a time"], max_new_tokens=32)

Names load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "family": "stemma.families",
    "design": "stemma.families",
    "tree": "stemma.families",
    "load": "stemma.formats",
    "save": "stemma.formats",
    "build": "stemma.formats",
    "generate": "stemma.decoding",
    "fill": "stemma.decoding",
    "embed": "stemma.decoding.pooling",
    "pretrain": "stemma.train",
    "tune": "stemma.tuning",
    "predict": "stemma.tuning",
    "align": "stemma.alignment.run",
}

__all__ = [
    "__version__", "align", "build", "design", "embed", "family", "fill", "generate", "load", "predict", "pretrain",
    "save", "tree", "tune",
]  # fmt: skip

if TYPE_CHECKING:
    from stemma.alignment.run import align
    from stemma.decoding import fill, generate
    from stemma.decoding.pooling import embed
    from stemma.families import design, family, tree
    from stemma.formats import build, load, save
    from stemma.train import pretrain
    from stemma.tuning import predict, tune


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'stemma' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
