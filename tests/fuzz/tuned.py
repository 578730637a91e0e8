"""Tuned models and the rows that they learn from: what `tune`, `predict` and `eval` read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

SETTINGS = {
    "recipe.batch": 64, "train.context": 32, "train.eval_tokens": 64, "train.threads": 1, "train.precision": "fp32",
    "train.val_fraction": 0.2,
}  # fmt: skip
SETS = [word for path, value in SETTINGS.items() for word in ("--set", f"{path}={value}")]
BASES = "tuned-from"  # beside the subjects: models that rows are tried on, which nobody damages
Make = Callable[..., Any]  # `subjects.model`


def rows(texts: list[str]) -> list[dict[str, Any]]:
    """Rows that have the columns of every task."""
    found = []
    for i, text in enumerate(texts[:30]):
        words = text.split()[:4]
        context = " ".join(words)
        answer = {"text": [words[1]], "answer_start": [context.index(words[1])]}
        found.append(
            {"text": " ".join(words), "label": ["no", "yes", "perhaps"][i % 3], "number": i % 2, "target": words[-1], "words": words,
             "tags": ["O", "B-X", "I-X", "O"], "question": "Who?", "context": context, "answers": answer,
             "choices": ["a dog", "a cat"], "prompt": text[:20], "completion": words[0]}
        )  # fmt: skip
    return found


def write(folder: Path, name: str, found: list[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def tuned(model: Make, texts: list[str], what: str, family: str, kind: str, **more: Any) -> Callable[[Path], None]:
    """The folder of a model (`base`), rows (`rows.jsonl`), and a run that was tuned to them (`run`)."""

    def make(folder: Path) -> None:
        from stemma.tuning import tune

        model(family, kind).save(folder / "base")
        data = write(folder, "rows.jsonl", rows(texts))
        changes = SETTINGS | more.pop("changes", {})
        own = {"lora": None, "settings": None} | more
        tune(what, start=str(folder / "base"), data=str(data), out=folder / "run", budget="2 steps", quiet=True, overrides=changes, **own)  # fmt: skip
        for path in (folder / "run" / "run.json", folder / "run" / "model" / "adapter_config.json"):
            if path.exists():  # where it is in the folder of a case
                path.write_text(path.read_text().replace(str(folder.resolve()), "m"))

    return make


def of_tasks(model: Make, texts: list[str]) -> Callable[[Path], None]:
    """Rows in files of several kinds; models for them are made beside the subject."""

    def make(folder: Path) -> None:
        import csv

        import pyarrow as arrow
        from pyarrow import parquet

        from stemma.tuning import tune

        folder.mkdir()
        found = rows(texts)
        write(folder, "a.jsonl", found)
        (folder / "a.json").write_text(json.dumps(found))
        with open(folder / "a.csv", "w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(
                file, ["text", "label", "number", "target", "prompt", "completion"], extrasaction="ignore"
            )
            table.writeheader()
            table.writerows(found)
        parquet.write_table(arrow.Table.from_pylist(found), folder / "a.parquet")
        bases = folder.parent / BASES
        if not bases.is_dir():
            model("bert", "wordpiece").save(bases / "bert")
            model("gpt2", "bpe").save(bases / "gpt2")
            data = str(write(bases, "rows.jsonl", found))
            tune("classify", start=str(bases / "bert"), data=data, out=bases / "run", budget="2 steps", quiet=True, overrides=SETTINGS)  # fmt: skip

    return make


def tune_to(what: str, start: str, data: str, *words: str) -> tuple[str, ...]:
    return ("tune", what, "--from", start, "--data", data, "--out", "out", "--budget", "1 steps", "--quiet", *words, *SETS)  # fmt: skip


RUN, ROWS = "{m}/run", "{m}/rows.jsonl"
HEAD = (
    ("predict", RUN, "The cat sees."), ("predict", RUN, "x", '{{"text": "The dog."}}', "--json"),
    ("predict", RUN, "--data", ROWS, "--json"), ("eval", RUN, "--data", ROWS, "--json"), ("eval", RUN, "--data", ROWS),
    ("show", "{m}/run/model"), ("python:load", "{m}/run/model"), ("report", RUN, "--out", "out.html"),
)  # fmt: skip
AGAIN = (tune_to("classify", RUN, ROWS, "--text", "text", "--label", "label"),)
BESIDE = (
    ("predict", "{m}/base", "The cat.", "--json", "--adapter", RUN), ("merge", "{m}/base", "--adapter", RUN, "--out", "out"),
    ("eval", "{m}/base", "--data", ROWS, "--adapter", RUN), ("convert", RUN, "out"),
)  # fmt: skip
TALK = (
    ("predict", RUN, "--data", ROWS, "--json"), ("generate", RUN, "The cat", "-n", "3"), ("python:chat", "{m}/run/model"),
    ("merge", "{m}/base", "--adapter", RUN, "--out", "out"), ("python:load", RUN),
    tune_to("chat", "{m}/base", ROWS, "--lora", "2", "--template", "chatml"), ("resume", RUN, "--quiet"),
    ("data", "show", ROWS, "--for", RUN),
)  # fmt: skip
BERT, GPT2, MADE = (f"../{BASES}/{name}" for name in ("bert", "gpt2", "run"))
TASKS = (
    tune_to("classify", BERT, "{f}", "--text", "text", "--label", "label"), tune_to("classify", GPT2, "{f}", "--class-weights", "balanced"),
    tune_to("regress", BERT, "{f}", "--text", "text", "--label", "number"), tune_to("tag", BERT, "{f}"),
    tune_to("answer", BERT, "{f}"), tune_to("choose", BERT, "{f}", "--text", "text", "--label", "number"),
    tune_to("write", GPT2, "{f}", "--text", "text", "--target", "target"), tune_to("chat", GPT2, "{f}", "--template", "plain"),
    ("predict", MADE, "--data", "{f}", "--json"), ("eval", MADE, "--data", "{f}", "--json"),
)  # fmt: skip
