"""Which type each tensor of a file is written in.

After the usual files of llama.cpp: norms, biases and small tables are F32; in a file of few bits the output matrix (or
the embeddings that serve as one) is Q6_K, and in Q4_K and Q5_K files half of the layers have `attn_v` and `ffn_down` in
Q6_K (its files "Q4_K_M" and "Q5_K_M"). A matrix whose rows a type's blocks do not divide has the next wider type.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stemma.errors import UsageError, did_you_mean
from stemma.formats.gguf import quants
from stemma.formats.gguf.file import Entry

NUMBERS = {name: number for number, name in quants.NAMES.items()}
# a type's name: its number among ggml's types, and llama.cpp's number for a file of mostly this type
TYPES = {
    "float32": ("F32", 0), "float16": ("F16", 1), "bfloat16": ("BF16", 32), "q8_0": ("Q8_0", 7), "q6_k": ("Q6_K", 18),
    "q5_k": ("Q5_K", 17), "q5_1": ("Q5_1", 9), "q5_0": ("Q5_0", 8), "q4_k": ("Q4_K", 15), "q4_1": ("Q4_1", 3),
    "q4_0": ("Q4_0", 2),
}  # fmt: skip
OTHER_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q5_k_m": "q5_k", "q4_k_m": "q4_k"}
PLAIN = ("float32", "float16", "bfloat16")
WIDER = {"Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0"}  # where 256 does not divide a row
LAYER = re.compile(r"\bblk\.(\d+)\.")


def named(word: str) -> str:
    """The word of `TYPES` for a name: `F16`, `q4_k_m`. Raises UsageError for one that is not known."""
    low = word.lower()
    if (known := OTHER_NAMES.get(low, low)) in TYPES:
        return known
    hint = did_you_mean(low, [*TYPES, *OTHER_NAMES])
    raise UsageError(f"dtype {word!r} is no type of a GGUF file here; use {', '.join(TYPES)}{hint}")


@dataclass(frozen=True)
class Choice:
    """The types of a file of the type `word`. `head`: the tensor that gives the logits, if any; `layers`: of a stack;
    `exact`: tensors that are F32 always."""

    word: str
    head: str | None
    layers: int
    exact: re.Pattern[str]

    def of(self, name: str, shape: tuple[int, ...], word: str = "") -> int:
        """The number of a tensor's type. `word`: another type than the file's, for this one."""
        if self._is_exact(name, shape):
            return NUMBERS["F32"]
        kind = TYPES[word or self.word][0]
        return NUMBERS[fitting(kind if word in PLAIN else self._more(name, kind), shape[-1])]

    def wanted(self, name: str, shape: tuple[int, ...]) -> int:
        """The same, as if the blocks of every type divided every row."""
        return NUMBERS["F32"] if self._is_exact(name, shape) else NUMBERS[self._more(name, TYPES[self.word][0])]

    def _is_exact(self, name: str, shape: tuple[int, ...]) -> bool:
        return len(shape) < 2 or self.exact.search(name) is not None or name.endswith("norm.weight")

    def _more(self, name: str, kind: str) -> str:
        """The type of a matrix in a file of `kind`."""
        if self.word in PLAIN or kind == "Q8_0":
            return kind
        if name == self.head:
            return "Q6_K"
        if kind not in ("Q4_K", "Q5_K"):
            return kind
        if ".attn_qkv." in name:
            return "Q5_K" if kind == "Q4_K" else "Q6_K"
        found = LAYER.search(name)
        if found is None or not re.search(r"\.(attn_v|ffn_down(_exps)?)\.", name):
            return kind
        i, eighth = int(found[1]), self.layers // 8
        more = i < eighth or i >= 7 * self.layers // 8 or (i - eighth) % 3 == 2
        return "Q6_K" if more else kind


def fitting(kind: str, width: int) -> str:
    """The type itself, or the next wider one whose blocks divide rows of `width` weights."""
    if width % quants.SIZES[NUMBERS[kind]][0] == 0:
        return kind
    return fitting(WIDER.get(kind, "F16"), width)


def tell_wider(path: Path, choice: Choice, entries: Mapping[str, Entry]) -> None:
    """Warn of matrices that have another type than a file of this type is known for."""
    pairs = [(choice.wanted(e.name, e.shape), e) for e in entries.values()]
    wider = [(quants.NAMES[want], e) for want, e in pairs if want != e.type]
    if not wider:
        return
    kinds = Counter(f"{e.kind} instead of {want}" for want, e in wider)
    matrices = sum(len(e.shape) > 1 for e in entries.values())
    told = ", ".join(f"{n} in {words}" for words, n in kinds.most_common())
    warnings.warn(
        f"{path}: of {matrices} matrices, {told}: their rows are no multiple of the type's blocks", stacklevel=4
    )
