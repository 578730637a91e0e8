"""What people said of answers, learnt: the file of `stemma serve --feedback` as demonstrations (edited answers), pairs
(the better of two, and an edited answer before what it was made of) and thumbs.

Edits are learnt first (SFT), then pairs (DPO), then thumbs (KTO), each a run of one chain. Of what the file holds less
than two different rows no run is made: one is what it is judged by.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stemma import disk
from stemma.alignment.chains import Step
from stemma.errors import DataError, ResourceError, UsageError, brief

KINDS = ("edit", "pair", "thumb")
WORDS = {"sft": "edits", "dpo": "pairs", "kto": "thumbs"}  # of a step: what it learns
HELD = 0.1  # share of the rows that is held out of more


@dataclass
class Feedback:
    """The rows of a feedback file by what is learnt of them, each as it was said last, and lines that are none."""

    edits: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    thumbs: list[dict[str, Any]] = field(default_factory=list)
    unread: int = 0

    @property
    def kinds(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each step."""
        return {"sft": self.edits, "dpo": self.pairs, "kto": self.thumbs}

    @property
    def enough(self) -> list[str]:
        """The steps that have at least two different rows."""
        return [what for what, rows in self.kinds.items() if len({_learnt(row) for row in rows}) > 1]

    def __str__(self) -> str:
        held = [f"{len(self.edits)} edited answers", f"{len(self.pairs)} pairs", f"{len(self.thumbs)} thumbs"]
        return ", ".join([*held, *([f"{self.unread} lines that are none of these"] if self.unread else [])])


def read(path: str | Path) -> Feedback:
    """What a file of feedback holds. Of rows with one `id` and kind the last counts. Raises DataError for a file that
    is not there, or in which nothing can be learnt from."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}{disk.nearest_path(path)}; `stemma serve --feedback FILE` writes one")
    last: dict[tuple[str, str], dict[str, Any]] = {}
    found = Feedback()
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = disk.from_json(line)
        except ValueError:
            row = None
        kind = row.get("kind") if isinstance(row, dict) else None
        if not isinstance(row, dict) or kind not in KINDS:
            found.unread += 1
            continue
        last[kind, str(row.get("id", number))] = row
    for (kind, _), row in last.items():
        {"edit": found.edits, "pair": found.pairs, "thumb": found.thumbs}[kind].append(row)
    found.pairs += [pair for row in found.edits if (pair := _pair(row)) is not None]
    if not found.enough:
        raise DataError(
            f"{path} holds too little to learn from ({found}): at least two different rows of a kind are needed"
        )
    return found


def _learnt(row: Mapping[str, Any]) -> str:
    """What of a row is learnt."""
    return json.dumps([row.get(name) for name in ("messages", "prompt", "chosen", "rejected", "completion", "label")])


def _pair(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """An edited answer as preferred to what it was made of; None where the row does not say what that was."""
    messages, original = row.get("messages"), row.get("original")
    if not isinstance(messages, Sequence) or not messages or not isinstance(original, str) or not original.strip():
        return None
    rejected = [{"role": "assistant", "content": original}]
    return {"prompt": list(messages[:-1]), "chosen": [messages[-1]], "rejected": rejected}


def steps(
    said: Feedback,
    files: Path,
    template: str | None,
    overrides: Mapping[str, Mapping[str, Any]],
    budget: str | None = None,
) -> list[Step]:
    """The runs of a chain that learn what was said, from `files` (see `rows`). `overrides`: of the plan, by step."""
    found: list[Step] = []
    for what in said.enough:
        settings = {"template": template} if template else {}
        changes = {"train.val_fraction": HELD} | dict(overrides.get(what, {}))
        source = str(files / f"{WORDS[what]}.jsonl")
        more: dict[str, Any] = {"settings": settings, "overrides": changes}
        found.append(Step(what, WORDS[what], f"@{len(found)}", source, budget or "3 epochs", **more))
    return found


def rows(said: Feedback) -> dict[str, list[dict[str, Any]]]:
    """The files of a loop, by name."""
    return {f"{WORDS[what]}.jsonl": said.kinds[what] for what in said.enough}


def offer(url: str, model: str | Path, name: str, key: str | None) -> str:
    """Have the server at `url` load a model beside the others, by its route of the administrator. Returns the name.
    Raises UsageError where it refuses, ResourceError where it does not answer."""
    body = json.dumps({"model": str(Path(model).absolute()), "name": name}).encode()
    head = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{url.rstrip('/')}/admin/models", body, head)
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return str(json.load(answer)["id"])
    except urllib.error.HTTPError as error:
        said = brief(error.read(400).decode("utf-8", "replace"), 300)
        cure = "; start it with --admin and --api-key, and give that key in STEMMA_API_KEY" if error.code == 404 else ""
        raise UsageError(f"{url} does not take the model: {error.code} {error.reason}: {said}{cure}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResourceError(f"{url} does not answer: {getattr(error, 'reason', error)}; the model is kept") from None
