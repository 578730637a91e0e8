"""The process that rewards are computed in: `python -m stemma.alignment.worker SOURCE`.

It reads a line of JSON for each batch (`{"prompts": [...], "answers": [...], "records": [...]}`) and writes a line for
each result: `{"score": x}`, `{"scores": [...]}` of a function of lists, or `{"error": "..."}`. The first line that it
writes says whether there is such a function. What a function prints goes to the standard error.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from stemma.errors import DataError, StemmaError, UsageError, brief, did_you_mean, one_line

LISTS = ("prompts", "answers", "records")  # the parameters of a function that takes a whole batch


def main(source: str) -> None:
    """Serve until the standard input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    lines = os.fdopen(os.dup(0), encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    threading.Thread(target=_listen, args=(lines, asked), daemon=True).start()
    try:
        function, lists = found(source)
    except BaseException as error:  # a file may raise anything, SystemExit too
        _write(out, {"error": _said(error)})
        return
    _write(out, {"lists": lists})
    own = os.getpid()
    while True:
        batch = asked.get()
        rows = list(zip(batch["prompts"], batch["answers"], batch["records"], strict=True))
        for given in [tuple(zip(*rows, strict=True))] if lists else rows:
            result = _result(function, given, len(rows) if lists else None)
            if os.getpid() != own:  # a fork that a function left behind has no say
                os._exit(0)
            _write(out, result)


def _listen(lines: TextIO, asked: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Take in batches, and end the process with who asks: also while a function hangs."""
    for line in lines:
        asked.put(json.loads(line))
    os._exit(0)


def _write(out: TextIO, line: dict[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


def found(source: str) -> tuple[Callable[..., Any], bool]:
    """The function that a source names, and whether it takes lists. Raises UsageError."""
    if source.startswith("builtin:"):
        from stemma.alignment.verify import verifier

        return verifier(source.removeprefix("builtin:")), False
    path, _, name = source.rpartition(":")
    module = _module(Path(path))
    function = getattr(module, name, None)
    if not callable(function):
        own = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise UsageError(f"{path} has no function {name}{did_you_mean(name, own)} (it has: {', '.join(own) or 'none'})")
    parameters = inspect.signature(function).parameters
    lists = tuple(parameters)[:3] == LISTS
    places = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes = 3 if any(p.kind is p.VAR_POSITIONAL for p in parameters.values()) else len(places)
    free = [p for p in places if p.default is p.empty]
    if len(free) > 3 or takes < 3:
        raise UsageError(
            f"{name} in {path} takes ({', '.join(parameters)}); a reward is a function of (prompt, answer, record) to "
            "a number, or of (prompts, answers, records) to a list of numbers"
        )
    return function, lists


def _module(path: Path) -> Any:
    """The module of a file, which may import its neighbours."""
    sys.path.insert(0, str(path.parent))
    name = f"_stemma_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _result(function: Callable[..., Any], given: Sequence[Any], many: int | None) -> dict[str, Any]:
    """The line for a call. `many`: of the numbers that a function of lists must return."""
    try:
        value = function(*([list(g) for g in given] if many is not None else given))
        if many is None:
            return {"score": number(value)}
        if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
            raise DataError(f"it returned {brief(value)}, and a list of {many} numbers was expected")
        values = list(value)
        if len(values) != many:
            raise DataError(f"it returned {len(values)} numbers for {many} answers")
        return {"scores": [number(one) for one in values]}
    except BaseException as error:  # it may raise anything, and end the process
        return {"error": _said(error)}


def number(value: Any) -> float:
    """A finite number, from Python, numpy or torch. Raises DataError for anything else."""
    if isinstance(value, str | bytes | complex) or value is None:
        raise DataError(f"it returned {brief(value)}, which is no number")
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise DataError(f"it returned {brief(value)}, which is no number") from None
    if found != found or found in (float("inf"), float("-inf")):
        raise DataError(f"it returned {found}, and a finite number was expected")
    return found


def _said(error: BaseException) -> str:
    """What an error of a function is called: the sentence of our own, else its class, text and line."""
    if isinstance(error, StemmaError):
        return str(error)
    place, trace = "", error.__traceback__
    while trace is not None:
        if not trace.tb_frame.f_code.co_filename.startswith("<frozen"):  # of what imports the file
            place = f" (line {trace.tb_lineno} of {Path(trace.tb_frame.f_code.co_filename).name})"
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        place = ""  # its text names the line
    return one_line(f"it raised {type(error).__name__}: {error}{place}")


if __name__ == "__main__":
    main(sys.argv[1])
