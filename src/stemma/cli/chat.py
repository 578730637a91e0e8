"""`chat`: talk to a model in the terminal."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from stemma import disk
from stemma.cli import command, echo, stop
from stemma.cli.models import PATH, Loading, load, loading, params, sampling
from stemma.errors import DataError, StemmaError, UsageError, did_you_mean

HELP = """/undo         take the last round back
/retry        another answer to what you said last
/system TEXT  begin anew, with this system message (none: without)
/save FILE    write the conversation as one JSON line (added to FILE)
/exit         leave; so does the end of input"""
COMMANDS = ("/undo", "/retry", "/system", "/save", "/help", "/exit")


@command()
@PATH
@click.option("--system", default="", metavar="TEXT", help="The system message.")
@click.option("--template", metavar="NAME", help="A published template (vicuna, chatml, ...).  [default: PATH's own]")
@sampling
@loading
def chat(path: str, system: str, template: str | None, how: Loading, **options: Any) -> None:
    """Talk to the model at PATH (a folder, a run, an adapter, a GGUF file or a hub id).

    What you type is written by the model's own chat template, or by --template, and the answer comes as it is drawn;
    Ctrl-C stops it. /help lists what else can be typed. From a pipe, every line is what the user says next, and the
    answers are printed. The oldest rounds are left out where the conversation is longer than the model reads.
    """
    from stemma.conversations import Dialogue, writer

    model = load(path, how)
    if model.tokenizer is None:
        raise UsageError(f"{path} has no tokenizer, and a chat needs one")
    if model.arch.structure == "encoder":
        raise UsageError(f"{path} is an encoder, which writes no answers; chat with a decoder")
    write = writer(model.tokenizer, template)
    options["stop"] = tuple(dict.fromkeys([*options["stop"], *write.stops()]))
    seeded = options.pop("seed")
    if options["max_new_tokens"] is None:
        options["max_new_tokens"] = min(512, model.dims.context // 2)
    asked = params(model, options)
    room = model.dims.context - (asked.max_new_tokens or 0)
    Chat(model, Dialogue(write, model.tokenizer, room, system), asked, seeded).run()


class Chat:
    """A dialogue in the terminal, or from a pipe."""

    def __init__(self, model: Any, dialogue: Any, asked: Any, seed: int) -> None:
        self.model, self.dialogue, self.asked, self.seed = model, dialogue, asked, seed
        from stemma.decoding import stream  # now: Ctrl-C while modules are imported would end the process

        self.stream = stream
        self.terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self.drawn = 0  # answers so far: each has a seed of its own

    def run(self) -> None:
        """Until the input ends."""
        if self.terminal:
            echo(f"{self.model.name or 'the model'} listens. /help says what can be typed.", err=True)
        for line in self.lines():
            try:
                if line.startswith("/") and not self.command(line):
                    return
                if not line.startswith("/") and line.strip():
                    self.answer(self.dialogue.ask(line))
            except (UsageError, DataError) as error:
                if not self.terminal:
                    raise
                echo(f"{error}", err=True)

    def lines(self) -> Iterator[str]:
        """What is typed, or the lines of a pipe."""
        if not self.terminal:
            yield from (line.rstrip("\r\n") for line in sys.stdin)
            return
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # editing and history of what is typed
        while True:
            try:
                yield input("> ")
            except EOFError:
                echo()
                return

    def command(self, line: str) -> bool:
        """Do what a line that begins with a slash asks for. False to leave."""
        name, _, rest = line.partition(" ")
        match name:
            case "/exit":
                return False
            case "/help":
                echo(HELP)
            case "/undo":
                echo(f"taken back: {self.dialogue.undo().content}", err=True)
            case "/retry":
                self.retry()
            case "/system":
                self.dialogue.system = rest.strip()
                self.dialogue.turns.clear()
            case "/save":
                self.save(rest.strip())
            case _:
                raise UsageError(f"{name} is no command{did_you_mean(name, COMMANDS)}; /help lists them")
        return True

    def save(self, name: str) -> None:
        if not name:
            raise UsageError("/save needs the name of a file")
        if not self.dialogue.turns:
            raise UsageError("nothing was said yet")
        line = json.dumps({"messages": self.dialogue.conversation.messages}, ensure_ascii=False)
        path = Path(name)
        before = path.read_text("utf-8") if path.is_file() else ""
        disk.write(path, f"{before}{line}\n")
        echo(f"saved to {name}", err=True)

    def retry(self) -> None:
        """Another answer to what was said last."""
        before = self.dialogue.turns[-1].content if self.dialogue.turns else ""
        self.answer(self.dialogue.ask(self.dialogue.undo().content))
        if self.dialogue.turns and self.dialogue.turns[-1].content == before:
            echo("(the same answer again: --temperature 0.8 draws others)", err=True)

    def answer(self, prompt: list[int]) -> None:
        """Print the answer to the last turn as it comes."""
        if self.dialogue.left_out:
            rounds = "round is" if self.dialogue.left_out == 1 else "rounds are"
            echo(f"(the oldest {self.dialogue.left_out} {rounds} left out: the model reads no more)", err=True)
        out, reason = Typed(shutil.get_terminal_size().columns if self.terminal else 0), None
        try:
            for event in self.stream(self.model, [prompt], replace(self.asked, seed=self.seed + self.drawn)):
                out.add(event.text)
                reason = event.reason
        except KeyboardInterrupt:
            if not self.terminal:
                raise
            stop.forgive()
        except StemmaError:
            self.dialogue.undo()
            raise
        out.end()
        self.drawn += 1
        if not out.said.strip():
            echo(f"(it answers nothing; taken back: {self.dialogue.undo().content})", err=True)
            return
        if reason == "length":
            echo("(cut here; -n gives it more tokens)", err=True)
        self.dialogue.answered(out.said.strip())


class Typed:
    """An answer printed as it comes, without the blanks around it. `width`: of the terminal, at which it is broken
    between words; 0: nowhere."""

    def __init__(self, width: int) -> None:
        self.width, self.said = width, ""
        self.column = self.done = 0

    def add(self, piece: str) -> None:
        """More of the answer. The word at its end is held back until it is whole."""
        self.said = self.said + piece if self.said else piece.lstrip()
        at = self.done
        for found in re.finditer(r"(\s*)(\S+)(?=\s)", self.said[at:]):
            self.word(found[1], found[2])
            self.done = at + found.end()

    def word(self, blanks: str, word: str) -> None:
        """Print a word with the blanks before it, on a new line where it does not fit."""
        from rich.cells import cell_len

        line = blanks.rpartition("\n")[2]
        self.column = cell_len(line) + (0 if "\n" in blanks else self.column)
        if self.width and self.column and self.column + cell_len(word) > self.width and "\n" not in blanks:
            blanks, self.column = "\n", 0
        echo(blanks + word, nl=False)
        self.column += cell_len(word)

    def end(self) -> None:
        """Print what was held back."""
        rest = self.said[self.done :].rstrip()
        if rest:
            self.word(rest[: len(rest) - len(rest.lstrip())], rest.lstrip())
        echo()
