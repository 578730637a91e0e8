"""The plan of a run: plain typed values, set by dotted paths.

The same path (`recipe.lr`, `arch.norm.eps`, `train.save_every`) works in Python, in a YAML or TOML file and after
`--set`.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from stemma import disk
from stemma.data.steps import CleaningStep
from stemma.declare import alignment as _kinds  # noqa: F401  # objectives of a plan, too
from stemma.declare.family import Text
from stemma.declare.objectives import Objective
from stemma.declare.recipes import Recipe
from stemma.declare.tasks import RowObjective as RowObjective  # its kinds are objectives of a plan, too
from stemma.errors import UsageError
from stemma.nn.parts import Arch, Dims
from stemma.rewrites.kinds import Rewrite
from stemma.runs import best
from stemma.runs.spikes import Spikes
from stemma.spec import Bound, Spec, at_least, interval, not_negative, quiet, require

SETTINGS = 200_000  # characters of a file of settings
NODES = 100_000  # of a YAML file with its anchors written out: the most that are read
_UNITS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_POWERS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}


@dataclass(frozen=True)
class Budget(Spec):
    """How long to train: exactly one of these. `seconds` of wall clock, `tokens`, `flops`, `steps`, or `epochs` of the
    training text."""

    seconds: float | None = None
    tokens: float | None = None
    flops: float | None = None
    steps: int | None = None
    epochs: float | None = None


def budget(text: str) -> Budget:
    """Parse `"30m"`, `"1h30m"`, `"20M tokens"`, `"1e15 flops"`, `"50 steps"` or `"3 epochs"`. Raises UsageError for
    anything else."""
    plain = text.strip().lower()
    if found := re.fullmatch(r"([0-9.]+(?:e[+-]?[0-9]+)?)\s*([kmgbt]?)\s*(tokens?|flops?|steps?|epochs?)", plain):
        number, power, what = found.groups()
        try:
            amount = float(number) * _POWERS[power]
        except ValueError:
            amount = 0.0
        if 0 < amount < math.inf:
            match what[0]:
                case "t":
                    return Budget(tokens=amount)
                case "f":
                    return Budget(flops=amount)
                case "e":
                    return Budget(epochs=amount)
            if amount == int(amount):
                return Budget(steps=int(amount))
    elif re.fullmatch(r"(?:[0-9]+(?:\.[0-9]+)?\s*(?:sec|s|min|m|h|d)\s*)+", text.strip()):  # "20M" is no time
        seconds = sum(float(n) * _UNITS[u] for n, u in re.findall(r"([0-9.]+)\s*(sec|s|min|m|h|d)", text))
        if seconds > 0:
            return Budget(seconds=seconds)
    raise UsageError(
        f"train.budget={text!r} cannot be read; write a time (30m, 2h, 45s), tokens (20M tokens), "
        "compute (1e15 flops), steps (50 steps) or epochs (3 epochs)"
    )


Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Train(Spec):
    """How a run is carried out. The recipe says what is learned and how fast (`recipe.lr`; `recipe.batch`: tokens a
    step), the dims how long a row is (`dims.context`).

    `budget`: how long, see `budget()`; a time is that of training, without reading the text. `context`: tokens a row
    where shorter than `dims.context`. `micro`: rows in a micro-batch, chosen if left out; the gradient depends on it
    only through dropout, which draws once a micro-batch. `save_every`, `eval_every`: in steps; left out, ten
    checkpoints a run, one more whenever the last is half an hour old, and no evaluation before the end. `keep`:
    checkpoints kept.
    `precision`: `auto` takes bf16 where the hardware multiplies it and the model is wide enough to gain. `recompute`:
    patterns of module paths (`*.blocks.*`) whose activations are recomputed in the backward pass: less memory, about a
    third more work. `ahead`: steps whose batches are prefetched in a thread; left out, 2 on a GPU and 0 on a CPU.
    `average`: decay of a running mean of the weights, which is then evaluated and saved at the end. `spikes`: what to
    do when the loss spikes; left out, nothing, and a loss that is not finite ends the run. `start`: a run, a folder or
    a hub id whose weights and tokenizer the run begins with. `val_fraction`: share of the text held out;
    `eval_tokens`: about how many of its tokens are evaluated at most; `judged`: of a mixture's sources in the shares
    that they have in training (`weights`), or by the size of what is held out of them (`size`, as in runs that began
    before there was a choice). `unit`: what is held out: parts of long documents too (`block`), near `val_fraction` of
    the bytes, or whole documents only. `piece`: rows of text that are read of a long document before others have their
    turn; None: all of it at once. `alphabet`: characters that a WordPiece or
    `gpt-bpe` vocabulary keeps at most, where one is trained; left out 1,000, which Chinese text exceeds. `threads`: of
    the CPU; left out, torch's own number. `matrices`: what weight decay and Muon take for a matrix, what multiplies
    vectors (`use`) or whatever has two dimensions (`shape`, as in runs that began before there was a choice). `best`: a
    number that is evaluated (`bits_per_byte`, `loss`, `accuracy`; `+NAME` or `-NAME` where the name does not tell
    whether more or less is better) and decides which weights the finished model has; evaluations are then ten a run,
    unless `eval_every` says otherwise. `patience`: evaluations without a better one after which the run ends.
    `seconds`: what a budget of time left for training when the run began, and by which its length is adjusted; runs
    that began before have none, and keep their length. `new`: heads (`task`) that are drawn afresh though the weights
    in `start` have them. `products`: what multiplies fp32 matrices on a CPU, torch's own
    choice (`torch`: MKL) or oneDNN, where torch has it (`onednn`); sums round otherwise.
    """

    PLACE: ClassVar[str] = "train"

    budget: str = "5m"
    context: int | None = at_least(8, None)
    micro: int | None = at_least(1, None)
    save_every: int | None = at_least(1, None)
    eval_every: int | None = at_least(1, None)
    keep: int = at_least(1, 2)
    precision: Precision = "auto"
    compile: bool = False
    recompute: tuple[str, ...] = ()
    ahead: int | None = not_negative(None)
    average: float | None = interval("(0, 1)", None, example="0.999")
    spikes: Spikes | None = None
    val_fraction: float = interval("(0, 1)", 0.05)
    eval_tokens: int = at_least(1, 50_000)
    judged: Literal["weights", "size"] = "weights"
    unit: Literal["block", "document"] = "block"
    piece: int | None = at_least(1, 4)
    threads: int | None = interval("[1, 1024]", None)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tensorboard: bool = False
    start: str = ""
    alphabet: int | None = at_least(1, None)
    matrices: Literal["use", "shape"] = "use"
    best: str = quiet("")
    patience: int | None = quiet(None, Bound(1, said="be at least 1"))
    seconds: float | None = quiet(None, Bound(0, open_low=True, said="be positive"))
    new: tuple[str, ...] = quiet(())
    products: Literal["torch", "onednn"] = quiet("torch")

    def check(self) -> None:
        budget(self.budget)
        if self.best:
            best.parse(self.best)
        require(self.patience is None or bool(self.best), "train.patience counts evaluations of train.best; set it too")


@dataclass(frozen=True)
class Net(Spec):
    """A network that an objective needs beside the model: its `role` (generator, teacher), size (`name`) and design,
    and whether it learns. A frozen net has its `weights` in a folder or at the hub, and their `fingerprint`."""

    role: str
    name: str
    arch: Arch
    dims: Dims
    learns: bool = True
    weights: str = ""
    fingerprint: str = ""


@dataclass(frozen=True)
class Plan(Spec):
    """A resolved run: everything that decides what is computed, but for the data itself.

    `name`: the family or size that it descends from; `data`: where the text comes from (`stemma.data.sources`);
    `clean`: the steps that it goes through first (`stemma.data.steps`); `rewrites`: what replaces modules of the model
    (`stemma.rewrites`), in this order; `system`: the tuned family whose recipe it is.
    """

    name: str
    scale: str
    arch: Arch
    dims: Dims
    objective: Objective
    text: Text
    recipe: Recipe
    train: Train
    data: str
    seed: int
    nets: tuple[Net, ...] = ()
    clean: tuple[CleaningStep, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    system: str = quiet("")

    def check(self) -> None:
        require(0 <= self.seed < 2**63, f"the seed must lie between 0 and 2**63 - 1, not {self.seed}")

    @property
    def context(self) -> int:
        """Tokens a row."""
        return self.train.context if self.train.context is not None else self.dims.context

    @property
    def rows(self) -> int:
        """Rows a step."""
        return max(1, round((self.recipe.batch or self.context) / self.context))


def overrides(path: str | Path) -> dict[str, Any]:
    """The changes in a YAML or TOML file, as dotted paths. Nested tables and dotted keys mean the same.

    A table with a `kind` is one value (`position: {kind: Rotary, base: 5e5}`). Raises UsageError for a file that is
    missing, malformed or no table.
    """
    path = Path(path)
    if not path.is_file():
        what = f"{path} is a folder, not a file" if path.is_dir() else f"no file {path}"
        raise UsageError(f"{what} to read settings from")
    try:
        text = path.read_text("utf-8")
        if len(text) > SETTINGS:
            raise ValueError(f"it has {len(text):,} characters, and files of settings have at most {SETTINGS:,}")
        if path.suffix == ".toml":
            data: Any = tomllib.loads(text)
        else:
            data = read_yaml(text) or {}
        disk.check_depth(data)
    except Exception as error:
        raise UsageError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(data, Mapping):
        raise UsageError(f"{path} should hold a table of settings such as 'train: {{budget: 2h}}'")
    return flat(data)


def read_yaml(text: str) -> Any:
    """The value of a YAML text. Raises ValueError for anchors that hold themselves, or that multiply to more than
    `NODES` values, and what yaml raises."""
    import yaml

    loader = yaml.SafeLoader(text)
    sizes: dict[int, int | None] = {}

    def size(node: Any) -> int:
        """Values that `node` stands for; None in `sizes` while they are counted."""
        if id(node) not in sizes:
            sizes[id(node)] = None
            items = () if isinstance(node.value, str) else node.value
            sizes[id(node)] = 1 + sum(size(n) for item in items for n in (item if isinstance(item, tuple) else (item,)))
        found = sizes[id(node)]
        if found is None:
            raise ValueError("an anchor holds itself")
        return found

    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if (count := size(node)) > NODES:
            raise ValueError(f"its anchors stand for {count:,} values, more than {NODES:,}")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted paths."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and "kind" not in value:
            found |= flat(value, path + ".")
        else:
            found[path] = value
    return found
