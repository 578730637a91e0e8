"""`data`: the built-in texts, and what an objective makes of a text."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stemma import disk
from stemma.cli import (
    Group,
    ai_feedback,
    calling,
    code,
    console,
    corpus,
    echo,
    emit,
    ghosts,
    instructing,
    mixing,
    overrides,
)
from stemma.cli.complete import complete_data, set_option
from stemma.cli.show import is_path
from stemma.cli.texts import GRAMMAR
from stemma.cli.training import given
from stemma.errors import UsageError

if TYPE_CHECKING:
    from rich.text import Text

LOSS_ON = ("answers", "last answer", "everything")
SAMPLE = 400_000  # characters of a text that `data show` looks at


@click.group(cls=Group)
def data() -> None:
    """The built-in texts, what a text is made of, cleaning, and what an objective makes of a text."""


MAKERS = (
    instructing.self_instruct,
    instructing.explain,
    ghosts.ghost,
    ghosts.distil,
    ai_feedback.ai_feedback,
    mixing.mixture,
    calling.apis,
    code.functions,
)
for _command in (corpus.clean, corpus.stats, corpus.cache, *MAKERS):
    data.add_command(_command)


@data.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print plain data as JSON.")
def data_list(as_json: bool) -> None:
    """List the texts that need no download, with their licences."""
    from stemma.data import builtin

    rows = []
    for name in builtin.NAMES:
        documents = list(builtin.rows(name)) if _there(name) else None
        amount = None if documents is None else sum(len(text.encode()) for _, text in documents)
        row: dict[str, Any] = {
            "name": f"builtin:{name}",
            "bytes": amount,
            "documents": len(documents) if documents is not None else None,
        }
        rows.append(row | {"licence": builtin.licence(name)})
    if as_json:
        emit(rows)
        return
    for row in rows:
        size = "not installed".rjust(26)
        if row["bytes"] is not None:
            size = f"{row['bytes'] / 1e6:5.1f} MB {row['documents']:>7,} documents"
        echo(f"{row['name']:<15}{size}  {row['licence']}")
    echo("Besides: a file, a folder, a glob, rows.jsonl, rows.parquet, hf://org/name; see `stemma data stats --help`.")


def _there(name: str) -> bool:
    from stemma.data import read
    from stemma.errors import ResourceError

    try:
        read(f"builtin:{name}")
    except ResourceError:
        return False
    return True


@data.command(name="show", epilog=GRAMMAR)
@click.argument("source", metavar="SPEC", shell_complete=complete_data)
@click.option(
    "--for", "name", default="roberta", show_default=True, help="A family, or a MODEL that conversations are shown to."
)
@click.option("--rows", type=click.IntRange(min=1), default=3, show_default=True, help="Training rows to print.")
@click.option("--template", metavar="NAME", help="Conversations: a published template.  [default: MODEL's own]")
@click.option("--loss-on", type=click.Choice(LOSS_ON), help="Conversations: what is learnt.  [default: answers]")
@click.option("--hard-prompt", "hard", multiple=True, metavar="[TASK=]FILE|TEXT", help="Words around every question.")
@set_option("Change the plan, e.g. objective.rate=0.3.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print rows as JSON.")
def data_show(
    source: str,
    name: str,
    rows: int,
    template: str | None,
    loss_on: str | None,
    hard: tuple[str, ...],
    sets: tuple[str, ...],
    seed: int,
    as_json: bool,
) -> None:
    """Print training rows as the model gets them: what it reads, what it must say, what is ignored.

    SPEC is a text as below (the beginning of it is used, with a small tokenizer trained on that), or a run (its own
    text and tokenizer; --for and --set do not apply). With --for MODEL (a run, a folder, a GGUF file, a hub id) it is
    rows of conversations, which are shown turn by turn, answers that were compared or liked, which are shown side by
    side (with --loss-on, the preferred ones as conversations), or prompts; rows that cannot be learnt from are counted.
    """
    if given("name") and is_path(name):
        if given("sets", "seed"):
            raise UsageError(
                "--set and --seed change the plan of a family; conversations have --template and --loss-on"
            )
        _shown_to(source, name, rows, template, loss_on, hard, as_json)
        return
    if given("template", "loss_on", "hard"):
        raise UsageError(
            f"--template, --loss-on and --hard-prompt are for conversations: name a model by --for, where {name} is a "
            "family"
        )
    plan, tokenizer, view = _opened(source, name, sets, seed)
    from stemma.train.assemble import objective_of

    goal = objective_of(plan, tokenizer)
    examples = [example for example, _ in itertools.islice(goal.examples(view), rows)]
    if as_json:
        emit([_plain_row(example, tokenizer) for example in examples])
        return
    out = console()
    out.print(f"{plan.name}: {plan.objective}, {plan.context} tokens a row", style="bold")
    out.print(_legend(plan.arch.structure, plan.nets))
    for number, example in enumerate(examples, 1):
        out.print()
        out.print(f"row {number}", style="dim")
        for line in _row_lines(example, tokenizer, plan.arch.structure, plan.objective.pairing):
            out.print(line)


def _shown_to(
    source: str, name: str, rows: int, template: str | None, loss_on: str | None, hard: tuple[str, ...], as_json: bool
) -> None:
    """Rows as the model `name` gets them: answers that were compared or liked, prompts, or conversations."""
    from stemma.cli import comparing, talks

    if not (loss_on or hard) and (kind := comparing.kind_of(source)) is not None:
        comparing.show(source, name, rows, template, kind, as_json)
    else:
        talks.show(source, name, rows, template, loss_on or "answers", hard, as_json)


def _opened(source: str, name: str, sets: tuple[str, ...], seed: int) -> tuple[Any, Any, Any]:
    """The plan, the tokenizer and the training view of a run, or of the beginning of a text."""
    from stemma.train import resolve
    from stemma.train.assemble import fit_to_tokenizer
    from stemma.train.prepare import prepare, reopen, split

    if Path(source, "run.json").is_file():
        if given("name", "sets"):
            raise UsageError(f"{source} is a run: it has a family and settings of its own; leave out --for and --set")
        plan, tokenizer, store = reopen(Path(source))
        return plan, tokenizer, split(plan, store)[0]
    from stemma.data import read

    changes = {"dims.vocab": "2000"} | overrides(sets)
    plan = resolve(name, data=source, seed=seed, overrides=changes)
    texts: list[dict[str, str]] = []
    size = 0
    for document in read(source).documents():
        texts.append({"text": document.text[:SAMPLE]})
        texts[-1] |= {"lang": document.language} if document.language else {}
        texts[-1] |= {"group": document.group} if document.group else {}
        size += len(texts[-1]["text"])
        if size >= SAMPLE:
            break
    with tempfile.TemporaryDirectory(prefix="stemma-show-") as folder:
        part = Path(folder, "text.jsonl")
        with disk.write_jsonl(part) as add:
            for row in texts:
                add(row)
        plan = dataclasses.replace(plan, data=str(part))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a short text gives a small vocabulary; here that is no news
            store, tokenizer = prepare(plan, Path(folder, "run"), None, True, share=False)
        view = split(plan, store)[0]
        kept = Kept(view)
    return fit_to_tokenizer(plan, tokenizer, kept.languages), tokenizer, kept


class Kept:
    """A view's documents in memory, so that its files may go."""

    def __init__(self, view: Any) -> None:
        self.documents = [view[i].copy() for i in range(len(view))]
        self.starts = [view.sentences(i).copy() for i in range(len(view))]
        self.texts = [view.text(i) for i in range(len(view))]
        self.ends = [view.closed(i) for i in range(len(view))]
        self.languages, self.parts = view.languages, view.parts
        self.language_ids, self.groups, self.part_ids = view.language_ids, view.groups, view.part_ids

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, i: int) -> Any:
        return self.documents[i]

    def sentences(self, i: int) -> Any:
        return self.starts[i]

    def text(self, i: int) -> str:
        return self.texts[i]

    def closed(self, i: int) -> bool:
        return self.ends[i]


def _plain_row(example: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    from stemma.nn.model import IGNORED

    if example["input_ids"].ndim == 2:
        return {"pairs": _pairs(example, tokenizer)}
    row: dict[str, Any] = {"tokens": tokenizer.tokens(example["input_ids"])}
    if "labels" in example:
        row["targets"] = [None if t == IGNORED else tokenizer.tokens([t])[0] for t in example["labels"]]
    if "memory_ids" in example:
        row["memory"] = tokenizer.tokens(example["memory_ids"][example["memory_mask"] == 1])
    row |= {key: int(example[key]) for key in ("backward", "prefix") if key in example}
    if "mode" in example:
        row["attention"] = MODES[int(example["mode"])]
    if "decoder_input_ids" in example:
        row["decoder_tokens"] = tokenizer.tokens(example["decoder_input_ids"])
    for key in ("documents", "token_type_ids", "decoder_documents", "order"):
        if key in example:
            row[key] = [int(n) for n in example[key]]
    return row | ({"pair_label": int(example["pair_labels"])} if "pair_labels" in example else {})


def _pairs(example: dict[str, Any], tokenizer: Any) -> list[tuple[list[str], list[str]]]:
    """The texts of a group, first with second."""
    texts = zip(example["input_ids"], example["attention_mask"], strict=True)
    read = [tokenizer.tokens(ids[mask == 1]) for ids, mask in texts]
    half = len(read) // 2
    return list(zip(read[:half], read[half:], strict=True))


def _legend(structure: str, nets: Any = ()) -> Text:
    from rich.text import Text

    border = Text("  ") + Text("‖", style="bold red") + Text(" a document's border")
    if structure == "encoder":
        who = next((net.role for net in nets if net.learns), "model")
        return Text("read→said", style=TARGET) + Text(f": what stands there, and what the {who} must say") + border
    if structure == "decoder":
        return (
            Text("predicted", style=TARGET) + Text(" from what it may see  ") + Text("only read", style="dim") + border
        )
    return Text("said", style=TARGET) + Text(" by the decoder, from the row above it") + border


TARGET = "bold green"
MODES = ("full", "prefix", "causal", "reverse")  # of `attention`, as rows number them


SECOND = {"next": ("the text that follows", "a random text"), "order": ("as in the text", "swapped")}


def _row_lines(example: dict[str, Any], tokenizer: Any, structure: str, pairs: str | None = None) -> list[Text]:
    """A row as coloured text; of an encoder-decoder, its input and then its targets. `pairs`: what a pair's label
    says."""
    from rich.text import Text

    from stemma.nn.model import IGNORED

    if example["input_ids"].ndim == 2:
        mark = Text(" belongs with ", style=TARGET)
        return [Text(" ".join(a)) + mark + Text(" ".join(b)) for a, b in _pairs(example, tokenizer)]
    read, labels = tokenizer.tokens(example["input_ids"]), example.get("labels", [IGNORED] * len(example["input_ids"]))

    def line(pieces: list[tuple[str, str]], documents: Any) -> Text:
        text = Text()
        for i, (piece, style) in enumerate(pieces):
            if documents is not None and documents[i] < 0:
                break  # padding, to the end of the row
            if i and documents is not None and documents[i] != documents[i - 1]:
                text.append("‖ ", style="bold red")
            text.append(piece, style=style)
            text.append(" ")
        rest = len(pieces) - i - 1 if documents is not None and documents[i] < 0 else 0
        return text + Text(f"(+{rest + 1} padding)", style="dim") if rest else text

    documents = example.get("documents")
    if documents is None and "attention_mask" in example:
        documents = example["attention_mask"] - 1
    if structure == "encoder":
        both = zip(read, labels, strict=True)
        pieces = [(r, "") if t == IGNORED else (f"{r}→{tokenizer.tokens([t])[0]}", TARGET) for r, t in both]
        if "order" in example:  # targets stand as they are, hidden by the order
            ranked = zip(read, labels, example["order"], strict=True)
            pieces = [(r, "") if t == IGNORED else (f"{r}#{n}", TARGET) for r, t, n in ranked]
        lines = [line(pieces, documents)]
        if "order" in example:
            lines += _order_lines(example, tokenizer)
        if "mode" in example:
            lines.append(Text(f"attention: {MODES[int(example['mode'])]}", style="dim"))
        if "pair_labels" in example and MODES[int(example.get("mode", 0))] == "full":
            what = "order of the segments" if pairs == "order" else "second segment"
            says = SECOND["order" if pairs == "order" else "next"][int(example["pair_labels"])]
            lines.append(Text(f"{what}: {says}", style=TARGET))
        return lines
    if structure == "decoder":
        ids = example["input_ids"]
        predicted = [False, *(labels[:-1] == ids[1:])]  # this token is the target of the one before it
        apart = [*((labels[:-1] != IGNORED) & (labels[:-1] != ids[1:])), False]  # the target here is in no input
        pieces = [
            (f"{r}→{tokenizer.tokens([t])[0]}" if odd else r, TARGET if said or odd else "dim")
            for r, said, odd, t in zip(read, predicted, apart, labels, strict=True)
        ]
        return [line(pieces, documents)]
    there = labels != IGNORED
    said = [(tokenizer.tokens([t])[0], TARGET) for t in labels[there]]
    marked = tokenizer.special_ids
    pieces = [(r, "yellow" if int(t) in marked else "") for r, t in zip(read, example["input_ids"], strict=True)]
    return [line(pieces, documents), line(said, example["decoder_documents"][there])]


def _order_lines(example: dict[str, Any], tokenizer: Any) -> list[Text]:
    """What stands before a row whose targets have an order, and which way it runs."""
    from rich.text import Text

    memory = tokenizer.tokens(example["memory_ids"][example["memory_mask"] == 1])
    way = "the row and its memory run backwards" if int(example["backward"]) else "the row runs forward"
    lines = [Text("token#n: said at n, from tokens with smaller numbers and all that have none", style="dim")]
    if memory:
        lines.append(Text("memory: " + " ".join(memory), style="dim"))
    return [*lines, Text(way, style="dim")]
