"""The elements of a picture of a network: boxes with chips, sums and forks, in stacks from the text to the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Item:
    """A box, or a chip inside one. `key`: what it is compared with on the other side; `paths`: the values it stands
    for; `sketch`: the name of a small drawing and its numbers; `known`: False where only its own words are shown."""

    key: str
    title: str
    text: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    chips: tuple[Item, ...] = ()
    sketch: tuple[Any, ...] = ()
    known: bool = True


@dataclass(frozen=True)
class Sum:
    """Where branches are added to the residual stream; `key` names its place, `below` the lowest box of the branch,
    which the stream leaves below; `scale`: what the stream is multiplied by before."""

    key: str
    below: str
    scale: Item | None = None


@dataclass(frozen=True)
class Fork:
    """Branches side by side that read one input and end in one sum."""

    items: tuple[Item, ...]
    key: str = "fork"


@dataclass(frozen=True)
class Factor:
    """A vector in a product of a score. `turn`: the parts of it that turn with a position, from its beginning, each
    with its share of the width; `place`: it stands for a position, not for a token."""

    name: str
    turn: tuple[float, ...] = ()
    place: bool = False


@dataclass(frozen=True)
class Term:
    """A product in a score, and what it is called."""

    factors: tuple[Factor, ...]
    label: str = ""


@dataclass(frozen=True)
class Stack:
    """An encoder or a decoder, from the bottom to the top: before the blocks, one block, after them."""

    role: str
    before: tuple[Item, ...]
    block: tuple[Item | Sum | Fork, ...]
    after: tuple[Item, ...]
    frame: tuple[Item, ...]  # what is said of the block as a whole: how often, how its norms stand
    streams: int = 1  # streams of hidden states that run through the blocks

    @property
    def wired(self) -> bool:
        """Whether it is known how the branches of a block are joined."""
        return all(item.known for item in self.frame)

    @property
    def boxes(self) -> list[Item]:
        """Every box, from the bottom to the top."""
        block = [item for b in self.block for item in (b.items if isinstance(b, Fork) else (b,))]
        return [*self.before, *(b for b in block if isinstance(b, Item)), *self.after]

    @property
    def fork(self) -> Fork | None:
        return next((b for b in self.block if isinstance(b, Fork)), None)

    @property
    def items(self) -> list[Item]:
        """Every box and chip, and the factors of residual streams."""
        scales = [b.scale for b in self.block if isinstance(b, Sum) and b.scale is not None]
        return [item for box in (*self.boxes, *self.frame, *scales) for item in (box, *box.chips)]


# Places from the bottom to the top; those in the middle stand in the block.
BEFORE = ("text", "embed", "embed_norm")
BRANCHES = ("attention", "cross", "mlp")
BLOCK = tuple(f"{branch}.{place}" for branch in BRANCHES for place in ("pre", "in", "out", "sum", "post"))
AFTER = ("final", "heads", "target")
