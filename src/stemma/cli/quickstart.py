"""`quickstart`: train three small relatives on one text and budget, sample from them, and write a report."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stemma import disk
from stemma.cli import command, console, echo, samples
from stemma.errors import UsageError

if TYPE_CHECKING:
    from stemma.train import Run

MARK = ".stemma-quickstart"  # a directory with this file may be cleared
RELATIVES = (
    ("roberta", "an encoder: guesses masked words"),
    ("llama", "a decoder: predicts the next word"),
    ("t5", "an encoder-decoder: restores removed spans"),
)
# Narrower than `--scale tiny`, so that a few minutes are enough; no dropout, because no text is read twice.
SMALLER: dict[str, Any] = {
    "dims.vocab": 2048,
    "dims.layers": 2,
    "train.context": 64,
    "train.eval_tokens": 20_000,
    "arch.dropout": "Dropout()",
}
# With learned positions the encoder would not get below word frequencies within this budget (5.6 nats; rotary positions
# reach 4.4). It masks 30 % of the tokens, twice the published share, to have twice the targets.
OWN: dict[str, dict[str, Any]] = {
    "roberta": {"arch.position": "Rotary()", "objective.rate": 0.3, "recipe.lr": 2e-3},
}
# (sentence with gaps (None), the text of the gaps)
MASKS: list[samples.Gapped] = [
    (["And Jehovah spake unto ", None, ", saying,"], ["Moses"]),
    (["And the children of ", None, " did that which was evil in the sight of Jehovah."], ["Israel"]),
    (["In the beginning God ", None, " the heavens and the earth."], ["created"]),
]
SPANS: list[samples.Gapped] = [
    (["And Jehovah spake unto ", None, ", saying, Speak unto the children of Israel."], ["Moses"]),
    (["And it came to pass ", None, " that the king said unto his servants."], ["in those days"]),
    (["And he did that which was evil in ", None, " of Jehovah, and walked in ", None, " of his father."],
     ["the sight", "the way"]),
]  # fmt: skip
PROMPTS = ("In the beginning", "And Jesus said unto them,", "And the king of Israel")


@command()
@click.option("--out", type=click.Path(file_okay=False), default="quickstart", show_default=True)
@click.option(
    "--budget", default="45s", show_default=True, help="Time or tokens of the first; the others match its tokens."
)
@click.option("--data", default="builtin:bible", show_default=True, help="A file, a folder, or builtin:NAME.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--quiet", is_flag=True, help="Print only the path of the report.")
def quickstart(out: str, budget: str, data: str, seed: int, quiet: bool) -> int:
    """Train three small relatives on one text under one budget, and write a report about them.

    An encoder (RoBERTa, with rotary positions), a decoder (LLaMA) and an encoder-decoder (T5) read the same text, each
    with a tokenizer of its own kind trained on it. A budget in seconds is for the first; the others get as many tokens
    as it read. Then they fill in words, continue a text, and restore spans. This takes about three minutes. A second
    run with the same --out starts over.
    """
    from stemma.report import write

    begin = time.monotonic()
    folder = clear(Path(out))
    say = console(stderr=True)
    runs = []
    for number, (name, words) in enumerate(RELATIVES, 1):
        if not quiet:
            say.print(f"{number}/{len(RELATIVES)}  {name}, {words}")
        run = train(folder / name, name, budget, data, seed, quiet)
        if not run.finished:
            return 130
        disk.write_json(folder / name / "samples.json", drawn(run, seed))
        runs.append(run)
        budget = f"{run.summary['tokens']} tokens"
    report = write([run.directory for run in runs], folder / "report.html")
    if not quiet:
        table(runs)
        say.print(f"\n{time.monotonic() - begin:.0f} s in all. The report, for any browser:", soft_wrap=True)
    echo(str(report))
    return 0


def clear(folder: Path) -> Path:
    """Empty `folder` and mark it as a quick start's. Raises UsageError if it holds something else."""
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARK).is_file():
            raise UsageError(f"{folder} is not empty and not from a quick start; choose another --out")
        shutil.rmtree(folder)
    disk.write(folder / MARK, "`stemma quickstart` may clear this directory.\n")
    return folder


def train(directory: Path, name: str, budget: str, data: str, seed: int, quiet: bool) -> Run:
    from stemma.train import pretrain

    changes = SMALLER | OWN.get(name, {})
    return pretrain(
        name, data=data, out=directory, budget=budget, seed=seed, scale="tiny", overrides=changes, quiet=quiet
    )


# ---------------------------------------------------------------- samples


def drawn(run: Run, seed: int) -> dict[str, Any]:
    """Samples of the model in the form of `samples.json`."""
    if run.model.arch.structure == "decoder":
        return samples.continued(run.model, PROMPTS, seed)
    return samples.filled(run.model, MASKS if run.model.arch.structure == "encoder" else SPANS)


# ---------------------------------------------------------------- the table in the terminal


def table(runs: list[Run]) -> None:
    """Print a short summary on standard error."""
    from rich.table import Table

    from stemma.report.facts import baselines

    out = console(stderr=True)
    rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("", "parameters", "tokens/s", "loss", "bits/byte", "of"):
        rows.add_column(title, justify="left" if title in ("", "of") else "right", no_wrap=True)
    for run in runs:
        val = run.summary["val"]
        bits = val.get("bits_per_byte", val.get("bits_per_target_byte"))
        what = "the whole text" if "bits_per_byte" in val else "hidden parts"
        cells = (f"{run.summary['parameters']:,}", f"{run.summary['tokens_per_second']:,.0f}")
        rows.add_row(run.plan.name, *cells, f"{val['loss']:.3f}", f"{bits:.3f}", what)
    for name, bits in sorted(baselines([(run.plan.name, run.summary) for run in runs]).items()):
        rows.add_row(name, "", "", "", f"{bits:.3f}", "the whole text")
    out.print()
    out.print(rows)
