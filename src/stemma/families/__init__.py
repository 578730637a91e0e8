"""The tree. Every module beside this one declares families; adding a file adds its families.

`family(name)` finds a family, `design(name)` a size of one, `tree()` all of them, parents first.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
import re
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

from stemma.declare.family import Design, Family
from stemma.errors import UsageError, did_you_mean, nearest
from stemma.spec import Spec

MOST = 8  # names that a message lists
_added: dict[str, Family] = {}
_read: dict[tuple[Path, bytes], list[Family]] = {}  # what files of one's own declared
_modules: dict[Path, ModuleType] = {}  # those files, as modules


@functools.cache
def _declared() -> dict[str, Family]:
    found: list[Family] = []
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        found += [value for value in vars(module).values() if isinstance(value, Family)]
    return {f.name: f for f in sorted(found, key=lambda f: (len(f.lineage), f.about.year, f.name))}


def tree() -> dict[str, Family]:
    """Every family by name, parents before children."""
    return {**_declared(), **_added}


def declared(name: str) -> bool:
    """Whether a family or size is the tree's own, not one that a file added."""
    return family(name).name not in _added


def add(path: str | Path) -> list[Family]:
    """Take in what a Python file of one's own declares: families, kinds of objectives and components, layouts,
    commands. Runs the file, unless it was taken in before and has not changed. Returns the families.

    Raises UsageError if the file is missing, declares nothing, or declares a family that exists.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no file {path} to read families from")
    known, content = tree(), (path.resolve(), path.read_bytes())
    if content in _read and all(known.get(f.name) is f for f in _read[content]):
        return _read[content]
    name = f"stemma_families_{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # where the types of fields are looked up
    module_spec.loader.exec_module(module)
    found = [v for v in vars(module).values() if isinstance(v, Family) and known.get(v.name) is not v]
    if not found and not any(_extends(value, name) for value in vars(module).values()):
        raise UsageError(f"{path} declares no family; it should hold one: NAME = PARENT.evolve(...)")
    for new in found:
        if new.name in known and known[new.name] != new:
            raise UsageError(f"{path} declares {new.name!r}, a name that the tree has already; choose another")
        _added[new.name] = new
    _read[content], _modules[path.resolve()] = found, module
    return found


def _extends(value: Any, module: str) -> bool:
    """Whether a value of a file is something else that it can declare: a kind, a layout or a command."""
    kind = isinstance(value, type) and issubclass(value, Spec) and value.__module__ == module
    return kind or type(value).__name__ in ("Layout", "Command", "Group")


def modules() -> list[ModuleType]:
    """The files of one's own that were taken in."""
    return list(_modules.values())


def family(name: str) -> Family:
    """The family of that name, or of a size of that name or hub id; letters' case, spaces, dots and hyphens do not
    matter where there is no doubt (`"LLaMA-2"`, `"Stable Beluga 2"`). Raises UsageError with the nearest name."""
    known = tree()
    name = known_as(name)
    if name in known:
        return known[name]
    return next(candidate for candidate in known.values() if name in candidate.names)


Family.by_name = staticmethod(family)


def known_as(name: str) -> str:
    """The name of a family or a size as the tree spells it. Raises UsageError if there is none, or more than one."""
    known = tree()
    if name in known or any(name in f.names for f in known.values()):
        return name
    every = [*known, *size_names()]
    if len(alike := [n for n in dict.fromkeys(every) if _plain(n) == _plain(name)]) == 1:
        return alike[0]
    for f in known.values():
        for size, row in f.sizes.items():
            if row.hub is not None and row.hub.lower() == name.lower():
                return size
    raise _unknown(name)


def _plain(name: str) -> str:
    return re.sub(r"[\s._-]", "", name).lower()


def design(name: str) -> Design:
    """The design of a size (`"gpt2-xl"`); a family's name alone means its first size. Raises UsageError, also for a
    family whose design was never published."""
    owner, name = family(name), known_as(name)
    return owner[name if name in owner.names or not owner.sizes else next(iter(owner.sizes))]


def size_names() -> dict[str, str]:
    """Every size's name and alias, to the name of its family."""
    return {name: f.name for f in tree().values() for name in f.names}


def _unknown(name: str) -> UsageError:
    known = tree()
    close = nearest(name, [*known, *size_names()], 1)
    for f in known.values():
        if name.startswith(f.name + "-") and not (close and _plain(close[0]).startswith(_plain(name))):
            hint = did_you_mean(name, f.names)
            has = [*f.sizes][:MOST]
            rest = f" and {len(f.sizes) - MOST} more (`stemma show {f.name}`)" if len(f.sizes) > MOST else ""
            return UsageError(f"{f.name} has no size {name!r}; it has {', '.join(has)}{rest}{hint}")
    short = name.rpartition("/")[2].lower()
    every = [*known, *size_names()]
    begun = [n for n in every if n.startswith(f"{short}-")][:1] if short not in every else []
    hint = did_you_mean(short, begun or every)
    return UsageError(f"no family or size is called {name!r}{hint or '; `stemma tree` lists them'}")
