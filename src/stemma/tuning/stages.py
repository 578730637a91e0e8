"""A tuned family's stages one after another: each but the last is a run in OUT/stages, the last one in OUT itself.

OUT/stages.json holds what was asked for, so that a chain that was stopped goes on wherever it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stemma import disk, spec
from stemma.errors import CheckpointError, MalformedError, UsageError
from stemma.rewrites import Rewrite
from stemma.runs import folder
from stemma.runs.drive import OnStep
from stemma.train.run import Run, begin, resume_run
from stemma.tuning import preview, systems

ASKED = {
    "format": int,
    "name": str,
    "start": str,
    "data": [str],
    "budget?": str,
    "seed": int,
    "settings": {str: Any},
    "lora?": int,
    "quantize?": str,
    "full": bool,
    "overrides": {str: Any},
    "rewrites": [Any],
}


def begun(out: str | Path) -> bool:
    """Whether a directory holds a chain of stages."""
    return (Path(out) / folder.STAGES).is_file()


def data_of(data: Sequence[str], number: int, many: int) -> str | None:
    """The data of stage `number`: one source for all stages, or one for each. Raises UsageError for other numbers."""
    if len(data) not in (0, 1, many):
        raise UsageError(f"{len(data)} sources of data for {many} stages: give one for all, or one for each")
    return None if not data else data[0] if len(data) == 1 else data[number - 1]


def carry_out(
    name: str, start: str, data: Sequence[str], out: str | Path, seed: int, resume: bool, on_step: OnStep | None,
    quiet: bool, mesh: str | None, *, budget: str | None, settings: Mapping[str, Any] | None, lora: int | None,
    quantize: str | None, rewrites: tuple[Rewrite, ...], full: bool, overrides: Mapping[str, Any] | None,
) -> Run:  # fmt: skip
    """Tune the model `start` in all stages of the family `name`, in their order; the arguments are those of `tune`."""
    out = Path(out)
    data_of(data, 1, len(systems.stages_of(name)))
    if begun(out):
        if not resume:
            raise UsageError(f"{out} holds a run already; resume it, or choose another directory")
        return go_on(out, on_step, quiet, mesh)
    if lora is not None or any(rewrite.freezes for rewrite in rewrites):
        raise UsageError(
            f"{name} has several stages, and an adapter of one is no model that the next could begin from: tune one "
            "at a time (--stage N), and merge what it learnt (`stemma merge`)"
        )
    folder.check_free(out, resume)
    asked = {
        "format": 1, "name": name, "start": start, "data": list(data), "budget": budget, "seed": seed,
        "settings": {key: value for key, value in spec.to_dict(settings or {}).items() if value is not None},
        "lora": lora, "quantize": quantize, "full": full, "overrides": spec.to_dict(overrides or {}),
        "rewrites": spec.to_dict(rewrites),
    }  # fmt: skip
    plan(asked, out, 1, quiet=True)  # what cannot be planned leaves nothing behind
    out.mkdir(parents=True, exist_ok=True)
    disk.write_json(out / folder.STAGES, asked)
    return go_on(out, on_step, quiet, mesh)


def go_on(out: str | Path, on_step: OnStep | None = None, quiet: bool = False, mesh: str | None = None) -> Run:
    """Carry a chain to its end from wherever it is. Raises CheckpointError for one whose file is damaged."""
    out = Path(out)
    asked = read(out)
    many = len(systems.stages_of(asked["name"]))
    for number in range(1, many + 1):
        place = place_of(out, number, many)
        if folder.exists(place):
            run = resume_run(place, on_step=on_step, quiet=quiet, mesh=mesh)
        else:
            if not quiet:
                disk.tell(f"stage {number} of {many}: {type(systems.system(asked['name'], number).stage).word}")
            planned = plan(asked, out, number, quiet)
            if not quiet:
                preview.tell_plan(planned)
            run = begin(planned, place, asked["overrides"], True, on_step, None, quiet, mesh)
        if not run.finished:
            break
    return run


def read(out: Path) -> dict[str, Any]:
    """What a chain was asked for. Raises CheckpointError."""
    path = out / folder.STAGES
    try:
        asked: dict[str, Any] = dict(disk.typed(path, disk.read_json(path), ASKED))
        systems.stages_of(asked["name"])
    except (MalformedError, UsageError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); begin the tuning in another directory") from None
    return asked


def place_of(out: Path, number: int, many: int) -> Path:
    """The directory of the run of stage `number`."""
    return out if number == many else out / "stages" / str(number)


def plan(asked: Mapping[str, Any], out: Path, number: int, quiet: bool) -> Any:
    """The plan of stage `number`, which begins from the weights of the one before."""
    many = len(systems.stages_of(asked["name"]))
    start = asked["start"] if number == 1 else str(place_of(out, number - 1, many))
    settings = asked["settings"] if systems.of_rows(asked["name"], number) else {}
    return systems.resolve(
        asked["name"], start, data_of(asked["data"], number, many), asked["budget"], asked["seed"], stage=number,
        full=asked["full"], settings=settings, lora=asked["lora"], quantize=asked["quantize"],
        rewrites=tuple(spec.from_dict(Rewrite, kind) for kind in asked["rewrites"]), overrides=asked["overrides"],
        quiet=quiet,
    )  # fmt: skip
