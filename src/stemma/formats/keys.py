"""The pieces of a publisher's table: `Key`, one key of a config.json, and `Layout`, the whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stemma import families, spec
from stemma.declare.family import Design
from stemma.errors import CheckpointError, UsageError, did_you_mean, nearest
from stemma.formats.names import Row
from stemma.nn.parts import Dims, Heads

REQUIRED = object()


def same(value: Any, *_: Any) -> Any:
    """The value as it is."""
    return value


@dataclass(frozen=True)
class Key:
    """One key of a config.json.

    `name`: dotted where the key is in a nested object (`vision_config.hidden_size`); `paths`: what it sets in the
    design; `default`: the reference's value where a file leaves the key out, or a function of the config; `read`,
    `write`: how its value becomes ours and back; `older`: earlier spellings; `when`: for which configs the key says
    something, all if left out (a design without the key's path is then written without the key); `rare`: written only
    where its value is not the default. A config that these functions see is flat: its nested keys have dotted names."""

    name: str
    paths: tuple[str, ...]
    default: Any = REQUIRED
    read: Callable[[Any, Mapping[str, Any]], Any] = same
    write: Callable[[Any, Design], Any] = same
    older: tuple[str, ...] = ()
    when: Callable[[Mapping[str, Any]], bool] | None = None
    rare: bool = False

    def to_config(self, design: Design) -> Any:
        """The key's value for a design; of a dim that a rule derives, the derived number. Raises UsageError for a value
        that the layout cannot express."""
        value = spec.get(design, self.paths[0])
        dim = self.paths[0].removeprefix("dims.")
        if dim in Dims.RULES and self.write is same:
            return getattr(design.dims, Dims.RULES[dim])
        return self.write(value, design)

    def spelling(self, config: Mapping[str, Any]) -> str:
        """The key as this config spells it; all spellings, joined with "and", if it has several."""
        return " and ".join(name for name in (self.name, *self.older) if name in config) or self.name

    def value(self, config: Mapping[str, Any]) -> Any:
        for name in (self.name, *self.older):
            if name in config:
                return config[name]
        if self.default is REQUIRED:
            raise CheckpointError(f"config.json has no {self.name!r}, which a model of this type needs")
        return self.default(config) if callable(self.default) else self.default


def flat(config: Mapping[str, Any], sections: Collection[str], prefix: str = "") -> dict[str, Any]:
    """A config with the keys of the nested objects `sections` under dotted names; other objects stay values. Raises
    CheckpointError for a section that is no object, and for a dotted name that is written as one key."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        full = f"{prefix}{name}"
        if "." in name and full.rpartition(".")[0] in sections:
            raise CheckpointError(f"config.json: {name!r} should be a key of a nested object, not one with a dot in it")
        if full not in sections or value is None:
            found[full] = value
        elif isinstance(value, Mapping):
            found |= flat(value, sections, f"{full}.")
        else:
            raise CheckpointError(f"config.json: {full}={value!r} should be an object with keys of its own")
    return {name: value for name, value in found.items() if name not in sections}


def nested(config: Mapping[str, Any], sections: Collection[str]) -> dict[str, Any]:
    """The inverse of `flat`."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        section, _, last = name.rpartition(".")
        place = found
        for part in section.split(".") if section in sections else ():
            place = place.setdefault(part, {})
        place[last if section in sections else name] = value
    return found


def key(name: str, *paths: str, default: Any = REQUIRED, **how: Any) -> Key:
    """A `Key` with its paths as arguments."""
    return Key(name, paths, default, **how)


def meant(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for a known name that is `word` inside of an object (`text_config.x`), or one typing slip
    away from it, else for one that is nearly the same: a name that is merely like it (use_mrope, use_cache) is another
    feature's."""
    known = list(known)
    if inside := [name for name in known if name.rpartition(".")[2] == word != name]:
        return did_you_mean(word, inside)
    slips = [name for name in known if _slip(word, name)]
    return did_you_mean(word, slips) or did_you_mean(word, nearest(word, known, cutoff=0.8))


def _slip(a: str, b: str) -> bool:
    """Whether `a` is `b` with one letter missing, added or replaced, or two neighbours swapped."""
    i = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    a, b = a[i:], b[i:]
    return a[1:] == b or a == b[1:] or a[1:] == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])


def token(value: Any, config: Mapping[str, Any]) -> Any:
    """A token id; -1 (in the first LLaMA files) means none."""
    return None if value == -1 else value


def number(value: Any, config: Mapping[str, Any]) -> Any:
    """A whole number, for a field of ours that also takes None."""
    if not isinstance(value, int):
        raise CheckpointError(f"{value!r} should be a whole number")
    return value


def switch(on: Any, off: Any) -> dict[str, Callable[..., Any]]:
    """`read` and `write` of a boolean key for a field with the two values `on` and `off`."""

    def read(value: Any, config: Mapping[str, Any]) -> Any:
        if not isinstance(value, bool):
            raise CheckpointError(f"{value!r} should be true or false")
        return on if value else off

    def write(value: Any, design: Design) -> Any:
        if value not in (on, off):
            raise UsageError(f"this layout has no word for {value!r}")
        return bool(value == on)

    return {"read": read, "write": write}


def several(value: Any, config: Mapping[str, Any]) -> Any:
    """A number, or a list of them as a tuple."""
    return tuple(value) if isinstance(value, list) else value


def ids(*, pad: int | None, bos: int | None, eos: int | None) -> tuple[Key, ...]:
    """The keys of the pad, bos and eos ids, with the reference's defaults."""
    return (
        key("pad_token_id", "text.pad_id", default=pad),
        key("bos_token_id", "text.bos_id", default=bos),
        key("eos_token_id", "text.eos_id", default=eos, read=several),
    )


def with_defaults(keys: Iterable[Key], **defaults: Any) -> tuple[Key, ...]:
    """`keys` with other defaults for some."""
    return tuple(replace(k, default=defaults.get(k.name, k.default)) for k in keys)


def words(table: Mapping[str, str]) -> dict[str, Callable[..., Any]]:
    """`read` and `write` of a key by a table: their word -> ours. Of several words for one of ours, the first is
    written."""

    def read(value: Any, config: Mapping[str, Any]) -> Any:
        if not isinstance(value, str) or value not in table:
            raise CheckpointError(f"{value!r} is not supported; known: {', '.join(table)}{meant(str(value), table)}")
        return table[value]

    def write(value: Any, design: Design) -> Any:
        for theirs, ours in table.items():
            if ours == value:
                return theirs
        raise UsageError(f"this layout has no word for {value!r}")

    return {"read": read, "write": write}


# transformers' names of activations -> ours
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_python": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "quick_gelu": "quick_gelu",
    "relu2": "relu2",
}
ACTS = words(ACTIVATIONS)


@dataclass(frozen=True)
class Layout:
    """A publisher's layout: config.json and the names of tensors.

    `classes`: the heads of each model class. `keys`: the keys that describe the design; `fixed`: keys with one
    supported value; `fixed_in`: the same for some classes, by the ends of their names, which alone read these keys;
    `unused`: keys that change nothing here, with the reason. `mark`: a key that tells this layout from others of the
    same model_type. `labels`: classes of a task head where a config gives no number. `variants`: what
    else of the design a class changes (an encoder alone).

    `rows`: the names table; `renames`: older spellings of parts of names; `unused_tensors`: tensors of old files that
    are not needed (regular expression: reason). `prefix`: put before the names of the body in a model with a head;
    `bodies`: the prefix of other classes. `tied_by_file`, `bias_by_file`: the tensors, not the config, decide whether
    the head is tied to the embeddings and whether it has a bias."""

    model_type: str
    families: tuple[str, ...]
    classes: Mapping[str, Heads]
    keys: tuple[Key, ...]
    rows: Callable[[Design], Iterable[Row]]
    prefix: str = ""
    bodies: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    fixed_in: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    renames: Mapping[str, str] = field(default_factory=dict)
    unused_tensors: Mapping[str, str] = field(default_factory=dict)
    tied_by_file: bool = False
    bias_by_file: bool = False
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    labels: int = 2
    mark: str = ""

    @property
    def name(self) -> str:
        """The model_type, with the mark where there is one."""
        return f"{self.model_type} ({self.mark})" if self.mark else self.model_type

    @property
    def sections(self) -> set[str]:
        """The nested objects that the layout's keys are in, by their dotted names."""
        names = [n for k in self.keys for n in (k.name, *k.older)] + [*self.fixed, *self.unused]
        return {name[:i] for name in names for i, letter in enumerate(name) if letter == "."}

    def of_class(self, named: str | None) -> dict[str, Any]:
        """The keys of `fixed_in` that mean something to a class; without its name, all of them."""
        found = (keys for end, keys in self.fixed_in.items() if named is None or named.endswith(end))
        return {name: value for keys in found for name, value in keys.items()}

    def base(self) -> Design:
        """The design that a config edits: the first size of the first family, with every head that a key may set."""
        first = families.family(self.families[0]).first
        known = (first.arch.heads, *self.classes.values())
        heads = {
            "arch.heads.lm": next((h.lm for h in known if h.lm is not None), None),
            "arch.heads.detect": next((h.detect for h in known if h.detect is not None), None),
        }
        return spec.edit(first, {**heads, "text.bos_id": None, "text.eos_id": None, "text.pad_id": None})


def reasons(reason: str, names: str) -> dict[str, str]:
    """The same reason for each of the names."""
    return dict.fromkeys(names.split(), reason)
