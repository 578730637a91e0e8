"""The elements of a picture of a network: boxes with chips, sums and forks, in stacks from the text to the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Item:
    """A box, or a chip inside one. `key`: items with the same key are compared; `paths`: the values that it shows;
    `sketch`: the name of a small drawing and its arguments; `known`: False for a component that no case draws."""

    key: str
    title: str
    text: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    chips: tuple[Item, ...] = ()
    sketch: tuple[Any, ...] = ()
    known: bool = True


@dataclass(frozen=True)
class Sum:
    """Where branches are added to the residual stream, which leaves the main line below the box `below`. `scale`: the
    factor of the stream."""

    key: str
    below: str
    scale: Item | None = None


@dataclass(frozen=True)
class Fork:
    """Parallel branches: one input, one sum."""

    items: tuple[Item, ...]
    key: str = "fork"


@dataclass(frozen=True)
class Factor:
    """A vector in a product of a score. `turn`: the shares of its width, from the beginning, that are rotated by a
    position; `place`: it is of a position, not of a token."""

    name: str
    turn: tuple[float, ...] = ()
    place: bool = False


@dataclass(frozen=True)
class Term:
    """A product in a score, with a label."""

    factors: tuple[Factor, ...]
    label: str = ""


@dataclass(frozen=True)
class BoxStack:
    """An encoder or a decoder, from the bottom to the top: below the blocks, one block, above them."""

    role: str
    before: tuple[Item, ...]
    block: tuple[Item | Sum | Fork, ...]
    after: tuple[Item, ...]
    frame: tuple[Item, ...]  # chips of the whole block: number of layers, kind of residual
    streams: int = 1  # streams of hidden states that run through the blocks

    @property
    def wired(self) -> bool:
        """Whether the residual is known, so that lines can be drawn."""
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


# Keys from the bottom to the top; BLOCK are those in the block.
BEFORE = ("text", "embed", "embed_norm")
BRANCHES = ("attention", "cross", "mlp")
BLOCK = tuple(f"{branch}.{place}" for branch in BRANCHES for place in ("pre", "in", "out", "sum", "post"))
AFTER = ("final", "heads", "target")
