"""The algebra of change: frozen typed values, edited by path, compared, printed and parsed.

A *spec* is any frozen dataclass that derives from `Spec`. Four operations are all that the rest of Stemma
needs, and Python, configuration files and the command line reach them by the same dotted paths:

    edit(value, {"arch.norm.eps": 1e-6})      a new value that differs in the named places
    diff(a, b)                                the changes that lead from a to b
    show(value)                               one `path: value` line a leaf
    to_dict(value) / from_dict(Type, data)    plain data for JSON and YAML, with a `kind` where types vary
"""

from __future__ import annotations

import ast
import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from stemma.errors import UsageError, brief, did_you_mean

T = TypeVar("T")
UNFIT = (ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError)  # of a value, or its text


@dataclass(frozen=True)
class Spec:
    """Base of every declared value. Subclasses are frozen dataclasses; their class name is their `kind`.

    Ranges of single fields are declared beside them (`rate: float = interval("(0, 1)", 0.15)`) and are checked when a
    value is made. Rules about several fields go into `check`.
    """

    PLACE: ClassVar[str] = ""  # what a message calls the value ("dims"), where its path is not known; else its class
    ELSEWHERE: ClassVar[str] = ""  # of an open base: what a message adds where a kind is unknown
    KINDS: ClassVar[dict[str, type[Spec]]]  # of an open base: its kinds by name

    def __init_subclass__(cls, *, open: bool = False, **more: Any) -> None:
        """`open`: the base of kinds that are found by being declared, wherever that is (`class MLM(Objective)`)."""
        super().__init_subclass__(**more)
        if open:
            cls.KINDS = {}
        for base in cls.__mro__[1:]:
            if (found := vars(base).get("KINDS")) is not None:
                old = found.setdefault(cls.__name__, cls)
                if old.__module__ != cls.__module__:
                    raise UsageError(f"a kind {cls.__name__} is declared in {old.__module__}; choose another name")
                found[cls.__name__] = cls

    def __post_init__(self) -> None:
        for name, bound in _bounds(type(self)):
            value = getattr(self, name)
            if not bound.holds(value):
                raise OutOfRange(name, f"must {bound.said}, not {value}", self.PLACE or type(self).__name__)
        self.check()

    def check(self) -> None:
        """Rules about several fields. Raises UsageError where one is broken."""

    def __str__(self) -> str:
        shown = [f"{f.name}={_leaf(getattr(self, f.name))}" for f in dataclasses.fields(self) if _differs(self, f)]
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True)
class Change:
    """One place where two values differ: a dotted `path`, the `old` value and the `new` one."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path}: {_leaf(self.old)} -> {_leaf(self.new)}"


class UnknownPath(UsageError):
    """A path into a value that has no such field; `path` is as far as it could be followed, with what failed."""

    def __init__(self, sentence: str, path: str) -> None:
        super().__init__(sentence)
        self.path = path


def require(condition: bool, sentence: str) -> None:
    """Raise `UsageError(sentence)` unless `condition` holds; for use in `Spec.check`."""
    if not condition:
        raise UsageError(sentence)


# ---------------------------------------------------------------- ranges of fields


class OutOfRange(UsageError):
    """A field whose value is outside of its range. `at(prefix)` is the same error under the path of the value."""

    def __init__(self, name: str, sentence: str, place: str) -> None:
        super().__init__(f"{place}.{name} {sentence}")
        self.name, self.sentence = name, sentence

    def at(self, prefix: str) -> UsageError:
        return UsageError(f"{prefix}{self.name} {self.sentence}" if prefix else str(self))


@dataclass(frozen=True)
class Bound:
    """A range of numbers. An `open_` end does not belong to it; `said`: what a message says of it. None, a field that
    is left out, always fits; of a tuple, every item must."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    said: str = ""

    def holds(self, value: Any) -> bool:
        if value is None:
            return True
        if isinstance(value, tuple):
            return all(self.holds(item) for item in value)
        above = self.low < value if self.open_low else self.low <= value
        return bool(above and (value < self.high if self.open_high else value <= self.high))


def bounded(bound: Bound, default: Any = dataclasses.MISSING) -> Any:
    """A field whose values lie within `bound`."""
    return dataclasses.field(default=default, metadata={"bound": bound})


def positive(default: T) -> T:
    """A field above 0."""
    return typing.cast(T, bounded(Bound(0, open_low=True, said="be positive"), default))


def not_negative(default: T) -> T:
    """A field of 0 or more."""
    return typing.cast(T, bounded(Bound(0, said="not be negative"), default))


def at_least(low: int, default: T, unit: str = "") -> T:
    """A field of `low` or more; `unit`: of what, for the message."""
    return typing.cast(T, bounded(Bound(low, said=f"be at least {low} {unit}".rstrip()), default))


def interval(text: str, default: T, example: str = "") -> T:
    """A field within an interval such as `"(0, 1]"`; `example`: a usual value, for the message."""
    low, high = text[1:-1].split(", ")
    both = text[0] + text[-1]
    said = f"lie between {low} and {high}" if both == "()" else f"lie in {text}"
    bound = Bound(float(low), float(high), text[0] == "(", text[-1] == ")", said + (example and f", such as {example}"))
    return typing.cast(T, bounded(bound, default))


def quiet(default: T, bound: Bound | None = None) -> T:
    """A field that is shown and written only where it is set."""
    return dataclasses.field(default=default, metadata={"quiet": True} | ({"bound": bound} if bound else {}))


_known_bounds: dict[type, list[tuple[str, Bound]]] = {}


def _bounds(kind: type[Spec]) -> list[tuple[str, Bound]]:
    if kind not in _known_bounds:
        _known_bounds[kind] = [(f.name, f.metadata["bound"]) for f in dataclasses.fields(kind) if "bound" in f.metadata]
    return _known_bounds[kind]


def kinds(base: type[Spec]) -> list[type[Spec]]:
    """The kinds of an open base, as declared; any other spec is its own only kind."""
    return list(vars(base)["KINDS"].values()) if _open(base) else [base]


# ---------------------------------------------------------------- reading by path


def get(value: Any, path: str) -> Any:
    """The value at a dotted `path`. Raises UsageError for a path that does not exist, with the nearest name."""
    for i, name in enumerate(names := path.split(".")):
        if name not in getattr(type(value), "__match_args__", ()):  # the fields, but for odd ones
            _check_field(value, name, ".".join(names[: i + 1]))
        value = getattr(value, name)
    return value


def leaves(value: Any, prefix: str = "", every: bool = False) -> Iterator[tuple[str, Any]]:
    """Every `(path, leaf)` below `value`; a nested spec yields its fields, and its kind where it could vary. `every`:
    quiet fields that are not set too."""
    for f in dataclasses.fields(value) if every else _shown(value):
        path, item = f"{prefix}{f.name}", getattr(value, f.name)
        if isinstance(item, Spec):
            if _varies(type(value), f.name) or not dataclasses.fields(item):
                yield path, type(item).__name__
            yield from leaves(item, path + ".", every)
        else:
            yield path, item


def show(value: Spec) -> str:
    """The resolved value as text, one leaf a line: stable, so that it can be kept as a golden file."""
    return "\n".join(f"{path}: {_leaf(item)}" for path, item in leaves(value))


# ---------------------------------------------------------------- changing


def edit(value: T, changes: Mapping[str, Any]) -> T:
    """A copy of `value` with the values at the given dotted paths replaced.

    A new value may be the typed value itself, plain data as `to_dict` writes it, or text as typed on a command
    line (`"1e-6"`, `"RMSNorm"`, `"Rotary(base=5e5)"`). Raises UsageError for an unknown path (naming the
    nearest) and for a value of the wrong type or range.
    """
    try:
        return _edit(value, changes, "")
    except UnknownPath as error:
        name = error.path.split(".")[-1]
        if like := [path for path, _ in leaves(value, every=True) if path.split(".")[-1] == name]:
            raise UsageError(f"no field {error.path!r}; did you mean {' or '.join(map(repr, like[:3]))}?") from None
        raise


def _edit(value: T, changes: Mapping[str, Any], prefix: str) -> T:
    own: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for path, new in changes.items():
        require(isinstance(path, str), f"a path is text such as 'arch.norm.eps', not {path!r}")
        name, _, rest = path.partition(".")
        _check_field(value, name, prefix + name)
        if rest:
            below.setdefault(name, {})[rest] = new
        else:
            own[name] = coerce(_hints(type(value))[name], new, prefix + name)
    for name, inner in below.items():
        target = own.get(name, getattr(value, name))
        if not dataclasses.is_dataclass(target):
            first = next(iter(inner))
            raise UsageError(f"{prefix}{name} is {_leaf(target)} and has no field {first!r}")
        own[name] = _edit(target, inner, f"{prefix}{name}.")
    try:
        return typing.cast(T, dataclasses.replace(typing.cast(Any, value), **own))
    except OutOfRange as error:
        raise error.at(prefix) from None


def real_changes(value: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` with every new value typed, after checking that each one changes `value`.

    Raises UsageError for an edit that changes nothing: a child declares only what differs from its parent.
    """
    edited = edit(value, changes)
    for path in changes:
        if get(value, path) == get(edited, path):
            raise UsageError(f"the edit {path}={_leaf(get(value, path))} changes nothing: the parent has that value")
    return {path: get(edited, path) for path in changes}


def diff(old: Any, new: Any, prefix: str = "") -> list[Change]:
    """The changes that lead from `old` to `new`: leaf by leaf where types agree, whole values where they do not."""
    if type(old) is not type(new):
        return [Change(prefix.rstrip("."), old, new)]
    changes: list[Change] = []
    for f in dataclasses.fields(old):
        a, b = getattr(old, f.name), getattr(new, f.name)
        if a == b:
            continue
        if isinstance(a, Spec) and type(a) is type(b):
            changes += diff(a, b, f"{prefix}{f.name}.")
        else:
            changes.append(Change(prefix + f.name, a, b))
    return changes


# ---------------------------------------------------------------- plain data


def to_dict(value: Any) -> Any:
    """`value` as plain data: specs become dicts with their `kind` first, tuples lists."""
    if isinstance(value, Spec):
        return {"kind": type(value).__name__} | {f.name: to_dict(getattr(value, f.name)) for f in _shown(value)}
    if isinstance(value, Mapping):
        return {str(k): to_dict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(v) for v in value]
    return value


def from_dict(kind: type[T], data: Any) -> T:
    """The inverse of `to_dict` for the spec type `kind`. Raises UsageError naming what does not fit."""
    return typing.cast(T, coerce(kind, data, ""))


def coerce(hint: Any, raw: Any, path: str) -> Any:
    """`raw` as a value of the type `hint`; `path` only names it in errors."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    specs = [kind for o in options if isinstance(o, type) and issubclass(o, Spec) for kind in kinds(o)]
    if any(isinstance(raw, s) for s in specs):
        return raw
    if type(None) in options and (raw is None or (isinstance(raw, str) and raw.lower() in ("none", "null"))):
        return None
    if specs and isinstance(raw, (str, Mapping)):
        return _parse_spec(specs, raw, path)
    for option in options:
        try:
            return _plain(option, raw)
        except UNFIT:
            continue
    raise UsageError(f"{path or 'value'}={brief(raw)} does not fit; expected {_type_name(hint)}")


def _plain(hint: Any, raw: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        if raw in typing.get_args(hint):
            return raw
        raise ValueError
    if hint is Any:
        return raw
    if hint is bool:
        words = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
        if isinstance(raw, str) and raw.lower() in words:
            return words[raw.lower()]
        if isinstance(raw, bool):
            return raw
        raise ValueError
    if hint in (int, float):
        if isinstance(raw, bool):
            raise ValueError
        if hint is int and (isinstance(raw, float) or (isinstance(raw, str) and any(c in raw for c in ".eE"))):
            if float(raw) != int(float(raw)):
                raise ValueError
            raw = int(float(raw))
        number = hint(raw)
        if not math.isfinite(number) or (hint is int and abs(number) >= 2**63):
            raise ValueError
        return number
    if hint is str and isinstance(raw, str):
        return raw
    if origin is tuple:
        inner = typing.get_args(hint)
        items = _items(raw, inner[0]) if isinstance(raw, str) else raw
        if not isinstance(items, (list, tuple)):
            raise TypeError
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(coerce(inner[0], v, "") for v in items)
        if len(items) != len(inner):
            raise ValueError
        return tuple(coerce(t, v, "") for t, v in zip(inner, items, strict=True))
    if isinstance(hint, type) and isinstance(raw, hint):
        return raw
    raise ValueError


def _parse_spec(specs: list[type[Spec]], raw: str | Mapping[str, Any], path: str) -> Spec:
    where = f"{path}: " if path else ""
    if isinstance(raw, str):
        raw = _call(raw, where, specs[0])
    fields = dict(raw)
    name = fields.pop("kind", None if len(specs) > 1 else specs[0].__name__)
    known = {s.__name__: s for s in specs}
    if not isinstance(name, str) or name not in known:
        if len(specs) == 1 and path:
            raise UsageError(
                f"{where}{name!r} cannot be read; it is always {_form(specs[0])}{_field_for(specs[0], name, path)}"
            )
        hint = did_you_mean(brief(name), known) or specs[0].ELSEWHERE
        raise UsageError(f"{where}no kind {brief(name)}; known: {', '.join(known)}{hint}")
    spec, hints = known[name], _hints(known[name])
    for key in fields:
        if key not in hints:
            raise UsageError(f"{where}{name} has no field {key!r}{did_you_mean(key, hints)}")
    prefix = f"{path}." if path else ""
    try:
        return spec(**{key: coerce(hints[key], item, prefix + key) for key, item in fields.items()})
    except OutOfRange as error:
        raise error.at(prefix) from None
    except TypeError as error:
        missing = [f.name for f in dataclasses.fields(spec) if f.name not in fields and _required(f)]
        raise UsageError(f"{where}{name} needs {', '.join(missing)}") from error


# a name that is no word of Python and stands without quotes, such as electra-small-generator or runs/one
_BARE = re.compile(r"(?<=[=,(\[])(\s*)([A-Za-z_][\w./-]*[./-][\w./-]*)(?=\s*[,)\]])")


def _call(raw: str, where: str, example: type[Spec]) -> dict[str, Any]:
    """The kind and the fields of a text such as `MLM(rate=0.3)`. Raises UsageError if it is none."""
    for text in (raw, _BARE.sub(r'\1"\2"', raw)):
        try:
            call = ast.parse(text.strip(), mode="eval").body
            if isinstance(call, ast.Name):
                return {"kind": call.id}
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
                continue
            fields = {"kind": call.func.id} | {str(k.arg): _literal(k.value) for k in call.keywords}
            if None not in {k.arg for k in call.keywords} and len(fields) == 1 + len(call.keywords):
                return fields
        except UNFIT:
            continue
    form = _form(example)
    raise UsageError(f"{where}{brief(raw)} cannot be read; write a kind, or a kind with named fields such as {form}")


def _form(kind: type[Spec]) -> str:
    return f"{kind.__name__}({', '.join(f.name + '=...' for f in dataclasses.fields(kind)[:2])})"


def _field_for(kind: type[Spec], word: Any, path: str) -> str:
    """How to say `word`, which is no kind, if it is the value of a field of `kind`."""
    for name, hint in _hints(kind).items():
        if typing.get_origin(hint) is typing.Literal and word in typing.get_args(hint):
            return f"; did you mean {path}.{name}={word}?"
    return ""


def _items(raw: str, inner: Any) -> Any:
    """The items of a tuple that is written as text, one also without a comma; specs also as `A(x=1), B()`."""
    if not (isinstance(inner, type) and issubclass(inner, Spec)):
        return found if isinstance(found := ast.literal_eval(raw), tuple | list) else (found,)
    node = ast.parse(raw.strip(), mode="eval").body
    return _literal(node) if isinstance(node, (ast.Tuple, ast.List)) else (_literal(node),)


def _literal(node: ast.expr) -> Any:
    if isinstance(node, (ast.Name, ast.Call)):
        return ast.unparse(node)
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(_literal(item) for item in node.elts)
    return ast.literal_eval(node)


# ---------------------------------------------------------------- small helpers


_known_hints: dict[type, dict[str, Any]] = {}


def _hints(kind: type) -> dict[str, Any]:
    if kind not in _known_hints:
        _known_hints[kind] = typing.get_type_hints(kind)
    return _known_hints[kind]


def _varies(kind: type, name: str) -> bool:
    hint = _hints(kind)[name]
    return typing.get_origin(hint) in (typing.Union, types.UnionType) or _open(hint)


def _open(hint: Any) -> bool:
    return isinstance(hint, type) and "KINDS" in vars(hint)


def _check_field(value: Any, name: str, path: str) -> None:
    if not dataclasses.is_dataclass(value):
        raise UsageError(f"no field {path!r}: {_leaf(value)} has no fields")
    known = [f.name for f in dataclasses.fields(value)]
    if name not in known:
        raise UnknownPath(
            f"no field {path!r} in {type(value).__name__} (it has {', '.join(known)}){did_you_mean(name, known)}", path
        )


def _required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _differs(value: Spec, f: dataclasses.Field[Any]) -> bool:
    return f.repr and (_required(f) or getattr(value, f.name) != f.default)


def _shown(value: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a spec that are shown and written."""
    return [f for f in dataclasses.fields(value) if "quiet" not in f.metadata or _differs(value, f)]


def _leaf(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(_leaf(v) for v in value) + ("," if len(value) == 1 else "") + ")"
    return str(value)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(repr(a) for a in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(o) for o in typing.get_args(hint))
    if _open(hint):
        return " or ".join(kind.__name__ for kind in kinds(hint))
    if hint is type(None):
        return "none"
    if hint in (int, float):
        return "a whole number" if hint is int else "a finite number"
    if typing.get_origin(hint) is tuple and typing.get_args(hint) == (str, ...):
        return "a list of words such as ['one', 'two']"
    return getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)
