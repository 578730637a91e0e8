"""What a family is: five declared parts, every published size, and the edge that joins it to its parent.

`Family.evolve` declares a child with new weights and a changed design; `Family.trained` a child that is more training
of the parent's weights. Both name only what differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from stemma import spec
from stemma.declare.objectives import Objective
from stemma.declare.recipes import Recipe
from stemma.declare.tuning import Tuning
from stemma.errors import UsageError, did_you_mean
from stemma.nn.parts import Arch, Dims, Heads
from stemma.spec import Change, Spec, quiet, require

# ---------------------------------------------------------------- text


# where a family that is trained so has no names of its own
BLANK_NAMES = ("[MASK]", "[sMASK]", "[gMASK]")
INFILL_NAMES = ("<PRE>", "<SUF>", "<MID>", "<EOT>")
LLAMA_INFILL = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")  # Code LLaMA's


@dataclass(frozen=True)
class Text(Spec):
    """The tokenizer's kind, its special tokens by role, and their ids where they are published.

    `start_id`: the first token of a decoder's input; `mask_id`: of a model that writes where its mask token stands;
    `sentinels`: how many `<extra_id_N>` there are (T5); `languages`: those of the language table, in its order (XLM).
    `blanks`: tokens that stand for a blank, the one for the end of a text last; `bos` begins what fills one, `eos` ends
    it (GLM). `infill`: tokens before a prefix, a suffix and a middle, and the one that ends a text so written (Code
    LLaMA). `shift`: what a decoder's input begins with where it is made from targets: the start token, or the last
    token of the target itself (the language code of mBART). `extras`: further special tokens that a tokenizer is
    trained with: the modes of UL2, the language codes of mBART, the first for texts whose language nobody names.
    `runs`: every run of spaces up to this many is one token (Codex).
    """

    tokenizer: Literal["wordpiece", "bpe", "gpt-bpe", "unigram", "spm-bpe"]
    lower: bool = False
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    unk: str | None = None
    mask: str | None = None
    cls: str | None = None
    sep: str | None = None
    sentinels: int = 0
    blanks: tuple[str, ...] = ()
    infill: tuple[str, ...] = ()
    bos_id: int | None = None
    eos_id: int | tuple[int, ...] | None = None
    pad_id: int | None = None
    start_id: int | None = None
    languages: tuple[str, ...] = ()
    mask_id: int | None = None
    blank_ids: tuple[int, ...] = ()
    shift: Literal["start", "last"] = "start"
    extras: tuple[str, ...] = ()
    runs: int = quiet(0)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a text (none, one or several)."""
        if self.eos_id is None:
            return ()
        return self.eos_id if isinstance(self.eos_id, tuple) else (self.eos_id,)


# ---------------------------------------------------------------- families


@dataclass(frozen=True)
class About(Spec):
    """Where a family comes from. `weights`: where public ones are, or why there are none."""

    year: int
    title: str
    source: str
    weights: str = "public"
    note: str = ""


@dataclass(frozen=True)
class Size:
    """A published size: widths, what else this size changes (by path into the design), the published count in words,
    other names, and the hub id of public weights."""

    dims: Dims
    changes: Mapping[str, Any] = field(default_factory=dict)
    published: str = ""
    aliases: tuple[str, ...] = ()
    hub: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Design(Spec):
    """A family at one size, resolved: all that is needed to build, train and read text."""

    name: str
    arch: Arch
    dims: Dims
    objective: Objective
    text: Text
    recipe: Recipe


def like(
    parent: Family,
    size: str,
    *,
    changes: Mapping[str, Any] = {},
    published: str = "",
    hub: str | None = None,
    **rest: Any,
) -> Size:
    """The size of a child that is trained from `size` of its parent: the same network, its own recipe and weights.
    `vocab`: another number of tokens; `aliases`, `note`: as in `Size`."""
    old = parent.sizes[parent.names[size]]
    kept = {path: value for path, value in old.changes.items() if path.split(".")[0] != "recipe"}
    dims = replace(old.dims, vocab=rest.pop("vocab", old.dims.vocab))
    return Size(dims, kept | dict(changes), published or old.published, hub=hub, **rest)


Edge = Literal["root", "evolve", "trained", "unpublished"]


def unknown(name: str) -> Family:
    """Where `stemma.families` is not imported there is no family to find."""
    raise UsageError(f"no family is called {name!r}: import stemma.families first")


@dataclass(frozen=True)
class Family:
    """A node of the tree. Index it by size for a `Design`: `family["bert-base"]`."""

    by_name: ClassVar[Any] = staticmethod(unknown)  # `stemma.families.family`, which sets it

    name: str
    arch: Arch
    objective: Objective
    text: Text
    recipe: Recipe
    sizes: Mapping[str, Size]
    about: About
    parent: Family | None = None
    edge: Edge = "root"
    changes: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, Heads] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    tuning: Tuning | None = None

    def __repr__(self) -> str:
        """Short: the name, where it comes from, and its first size; `stemma show` prints all."""
        parent = f", {self.edge} from {self.parent.name}" if self.parent is not None else ""
        first = f", first {next(iter(self.sizes))}" if self.sizes else ""
        return f"Family({self.name!r}{parent}, {len(self.changes)} changes, {len(self.sizes)} sizes{first})"

    def evolve(
        self,
        name: str,
        changes: Mapping[str, Any],
        *,
        sizes: Mapping[str, Size] | None = None,
        about: About | None = None,
        tasks: Mapping[str, Heads] | None = None,
        others: tuple[str, ...] = (),
        tuning: Tuning | None = None,
    ) -> Family:
        """A child with new weights that differs from this family in `changes` (paths into arch, objective, text and
        recipe). `tasks`: how it stands heads for a task on its body (`classify`, `tag`, `answer`, `choose`), where this
        differs from the parent's way; `others`: names of further parents; `tuning`: how it came from a parent's
        weights, if it did. For a quick try leave out `sizes` (one of the child's name, with this family's first widths)
        and `about` (this family's, without public weights). Raises UsageError for an unknown path and for a change that
        changes nothing."""
        if sizes is None:
            first = next(iter(self.sizes.values()), None)
            sizes = {} if first is None else {name: Size(first.dims, first.changes)}
        about = about or replace(self.about, weights="none: a design of one's own", note="")
        child = self._child(name, changes, sizes, about, "evolve")
        tasks = dict(self.tasks if tasks is None else tasks)
        return replace(child, tasks=tasks, others=others, tuning=tuning)

    def trained(
        self,
        name: str,
        changes: Mapping[str, Any],
        *,
        sizes: Mapping[str, Size],
        about: About,
        tuning: Tuning | None = None,
        others: tuple[str, ...] = (),
    ) -> Family:
        """A child that is more training of this family's weights, as `tuning` says: the architecture must stay, but
        for its mask, which has no weights."""
        inherited = [change for size in self.sizes.values() for change in size.changes.items()]
        own = [change for size in sizes.values() for change in size.changes.items() if change not in inherited]
        paths = (*changes, *(path for path, _ in own))
        wrong = [path for path in paths if path.split(".")[0] == "arch" and path.split(".")[1:2] != ["mask"]]
        if wrong:
            raise UsageError(f"{name} is declared as trained from {self.name} but changes {wrong[0]}; use evolve")
        return replace(self._child(name, changes, sizes, about, "trained"), others=others, tuning=tuning)

    def unpublished(
        self, name: str, *, about: About, tuning: Tuning | None = None, others: tuple[str, ...] = ()
    ) -> Family:
        """A descendant of whose design too little was published to build it. It stands in the tree with what is known,
        has no sizes, and nothing is invented for it: what it shares with this family is method."""
        child = self._child(name, {}, {}, about, "unpublished")
        return replace(child, others=others, tuning=tuning)

    def _child(
        self, name: str, changes: Mapping[str, Any], sizes: Mapping[str, Size], about: About, edge: Edge
    ) -> Family:
        require(edge != "evolve" or bool(changes), f"{name} changes nothing of {self.name}")
        if outside := [path for path in changes if path.split(".")[0] not in PARTS]:
            raise UsageError(f"{name}: {outside[0]!r} is no path into {', '.join(PARTS)}")
        try:
            real = spec.real_changes(self, changes)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
        child = spec.edit(self, real)
        return replace(
            child,
            name=name,
            sizes=dict(sizes),
            about=about,
            parent=self,
            edge=edge,
            changes=real,
            others=(),
            tuning=None,
        )

    # ------------------------------------------------------------ sizes

    @property
    def names(self) -> dict[str, str]:
        """Every name of a size, aliases included, to its main name."""
        return {alias: main for main, size in self.sizes.items() for alias in (main, *size.aliases)}

    def __getitem__(self, size: str) -> Design:
        """The design of a size (`"bert-base"`, or short `"base"`). Raises UsageError for one that does not exist."""
        names = self.names
        main = names.get(size) or names.get(f"{self.name}-{size}")
        if not names:
            raise UsageError(f"the design of {self.name} was never published ({self.about.source}), so it has no sizes")
        if main is None:
            raise UsageError(
                f"{self.name} has no size {size!r}; it has {', '.join(self.sizes)}{did_you_mean(size, names)}"
            )
        row = self.sizes[main]
        design = Design(main, self.arch, row.dims, self.objective, self.text, self.recipe)
        return spec.edit(design, row.changes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes)

    @property
    def first(self) -> Design:
        """The design of the size that is declared first."""
        return self[next(iter(self.sizes))]

    # ------------------------------------------------------------ relatives

    @property
    def lineage(self) -> list[Family]:
        """This family, its parent, and so on up to the root."""
        line, here = [self], self
        while here.parent is not None:
            here = here.parent
            line.append(here)
        return line

    def diff(self, other: Family | str) -> list[Change]:
        """The changes that lead from `other` to this family (sizes apart)."""
        named = self.by_name(other) if isinstance(other, str) else other
        old, new = ({p: getattr(f, p) for p in PARTS} for f in (named, self))
        return [change for part in PARTS for change in spec.diff(old[part], new[part], part + ".")]


PARTS = ("arch", "objective", "text", "recipe")
