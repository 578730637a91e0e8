"""The command line. This module lists the commands; the module of a command is imported when it is used.

Neither this module nor the commands' modules import torch at the top, so that `stemma --help` is fast.
"""

from __future__ import annotations

from stemma.cli import stop  # isort: skip  # first: Ctrl-C while the others are imported

import contextlib
import importlib
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from stemma import __version__
from stemma.cli.terminal import console, echo, flush, open_streams
from stemma.disk import abandon
from stemma.errors import LostError, StemmaError, UsageError, did_you_mean, no_memory, one_line

__all__ = ["command", "complete_names", "console", "echo", "emit", "existing_runs", "main", "overrides"]

# group -> (command, its arguments, one line about it, its module)
GROUPS: dict[str, list[tuple[str, str, str, str]]] = {
    "The tree": [
        ("tree", "[NAME]", "draw the family tree: who changed what", "lookup"),
        ("show", "NAME|PATH", "what a family, a size or a checkpoint is", "show"),
        ("diff", "A B", "what changes going from A to B", "lookup"),
        ("params", "NAME...", "exact parameter counts, no weights made", "lookup"),
    ],
    "Training": [
        ("quickstart", "", "train three small relatives, compare them", "quickstart"),
        ("plan", "NAME", "memory, time and cost of a run, before it", "planning"),
        ("pretrain", "NAME", "train a family from nothing on your text", "training"),
        ("tune", "WHAT", "tune a model to a task or to conversations", "tuning"),
        ("align", "WHAT", "a reward model, preferences, reinforcement", "aligning"),
        ("resume", "RUN", "go on with a run that was stopped", "training"),
        ("verify", "resume RUN", "check that a resumed run is the same run, bit by bit", "training"),
        ("data", "show|stats|clean|...", "look at a text, count it, clean it; make tasks", "data"),
        ("report", "RUN...", "one HTML file about one or several runs", "training"),
    ],
    "Checkpoints": [
        ("generate", "PATH PROMPT...", "continue text", "models"),
        ("chat", "PATH", "talk to a model in the terminal", "chat"),
        ("serve", "MODEL...", "models over HTTP: OpenAI's routes, and a page", "serve"),
        ("predict", "MODEL TEXT...", "what a tuned model says of texts or rows", "predicting"),
        ("eval", "MODEL...", "how good a tuned model is, or what a judge says", "predicting"),
        ("fill", "PATH TEXT", "guess the masked words of a text", "models"),
        ("embed", "PATH TEXT...", "vectors of texts, or how alike they are", "models"),
        ("convert", "SRC DST", "write a checkpoint in another layout or precision", "convert"),
        ("merge", "MODEL", "add adapters to weights, for good", "merging"),
    ],
    "Serving and measuring": [
        ("bench", "PATH", "how fast a model reads and writes here", "measuring"),
        ("lm-eval", "run ...", "scores on tasks of EleutherAI's harness", "measuring"),
        ("build", "", "compile what speeds up decoding on this CPU", "compiling"),
    ],
    "More": [
        ("completion", "SHELL", "set up tab completion: bash, zsh or fish", "meta"),
        ("help", "[TOPIC]", "this map, a command's help, or `exit-codes`", "meta"),
    ],
}
COMMANDS = {name: (line, module) for rows in GROUPS.values() for name, _, line, module in rows}


def overview() -> str:
    """The list of commands, one line each."""
    lines = ["Stemma: the family tree of language models, as running code.", ""]
    for group, rows in GROUPS.items():
        lines.append(group)
        lines += [f"  {f'{name} {arguments}'.rstrip():<25} {line}" for name, arguments, line, _ in rows]
        lines.append("")
    lines.append("`stemma COMMAND --help` says more. Start with `stemma tree`.")
    return "\n".join(lines)


def own_commands() -> dict[str, click.Command]:
    """The commands that files given by `--families` declare, by name."""
    if "stemma.families" not in sys.modules:
        return {}
    from stemma import families

    found = [value for module in families.modules() for value in vars(module).values()]
    return {str(value.name): value for value in found if isinstance(value, click.Command)}


# ---------------------------------------------------------------- options that every command takes


def _read_families(ctx: click.Context, param: click.Parameter, paths: tuple[str, ...]) -> None:
    if paths:
        from stemma import families

        for path in paths:
            families.add(path)


def _set_debug(ctx: click.Context, param: click.Parameter, on: bool) -> None:
    if on:
        ctx.find_root().meta["stemma.debug"] = True


def common() -> list[click.Parameter]:
    """`--families` and `--debug`, which may come before or after a command's name."""
    return [
        click.Option(
            ["--families"],
            multiple=True,
            metavar="FILE",
            expose_value=False,
            is_eager=True,
            callback=_read_families,
            help="Also take in what this Python file declares: families, objectives, components, commands (it is run).",
        ),
        click.Option(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_set_debug,
            help="Show tracebacks.",
        ),
    ]


class Command(click.Command):
    """A click command with the common options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += common()


class Group(click.Group):
    """A click group that suggests the nearest name for an unknown command."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            where = f"{ctx.command_path} has no command" if ctx.parent else "no command is called"
            hint = did_you_mean(name, self.list_commands(ctx))
            raise UsageError(f"{where} {name!r}{hint or f'; `{ctx.command_path} --help` lists them'}")
        return super().resolve_command(ctx, args)


class Root(Group):
    """The program: the module of a command is imported when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *own_commands()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return own_commands().get(cmd_name)
        module = importlib.import_module(f"stemma.cli.{COMMANDS[cmd_name][1]}")
        name = cmd_name.replace("-", "_")
        found: click.Command = getattr(module, name, None) or getattr(module, f"{name}_")
        return found

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(overview() + "\n\n")
        formatter.write("Options\n")
        with formatter.indentation():
            formatter.write_dl([row for p in self.get_params(ctx) if (row := p.get_help_record(ctx))])
        formatter.write("\nExit codes: `stemma help exit-codes`.\n")


@click.command(
    cls=Root,
    invoke_without_command=True,
    context_settings={"help_option_names": ["--help", "-h"]},
)
@click.version_option(__version__, "--version", prog_name="stemma", message="%(prog)s %(version)s")
@click.pass_context
def root(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(overview())


root.params += common()


# ---------------------------------------------------------------- errors


def main(args: list[str] | None = None) -> NoReturn:
    """Run the program and exit with one of the documented codes."""
    arguments = sys.argv[1:] if args is None else args
    debug = "--debug" in arguments
    open_streams()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = note
            code = root.main(args=arguments, prog_name="stemma", standalone_mode=False)
        flush()
        stop.ending()
        sys.exit(code if isinstance(code, int) else 0)
    except StemmaError as error:
        fail(str(error), error.exit_code, debug, isinstance(error, LostError))
    except click.ClickException as error:
        fail(usage_line(error), 2 if isinstance(error, click.UsageError) else error.exit_code, debug)
    except (KeyboardInterrupt, click.Abort):
        fail("stopped", 130, debug)
    except BrokenPipeError:
        stop.ending()
        abandon("stdout")  # the reader closed the pipe (`stemma tree | head`): print nothing, also at exit
        sys.exit(141)
    except MemoryError as error:
        fail(short_of_memory(error), 5, debug)
    except OSError as error:
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{(error.strerror or str(error)).lower()}", 5, debug)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of a library in Rust
            raise
        if stop.requested():  # a library made another error of it
            fail("stopped", 130, debug)
        if debug:
            raise
        if no_memory(error):
            fail(short_of_memory(error), 5, debug)
        text = " ".join(str(error).split())
        text = text if len(text) <= 300 else text[:300] + " ..."
        fail(f"unexpected {type(error).__name__}: {text}; run again with --debug to see where", 70, debug)


def short_of_memory(error: BaseException) -> str:
    """The message when memory runs out outside of a training step, which has a message of its own."""
    found = re.search(r"tried to allocate (\d+) bytes", str(error))
    wanted = f": {int(found[1]) / 1e9:,.1f} GB more were wanted" if found else ""
    return (
        f"out of memory{wanted}; choose a smaller size, batch or precision, or end other programs; a run goes on from "
        "its last checkpoint with `stemma resume`"
    )


def note(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a UserWarning in one line, on the first rank only; hide other warnings."""
    if issubclass(category, UserWarning) and int(os.environ.get("RANK", "0")) == 0:
        echo(f"note: {one_line(str(message))}", err=True)


def fail(sentence: str, code: int, debug: bool, lost: bool = False) -> NoReturn:
    """Print the error and exit. Of several processes one prints it; `lost`: the error is that another one ended."""
    stop.ending()
    if debug and sys.exc_info()[0] is not None:
        import traceback

        traceback.print_exc()
    from stemma.parallel.report_once import should_report

    if debug or should_report(sentence, lost):
        echo(f"error: {one_line(sentence)}", err=True)
    with contextlib.suppress(OSError):  # what was to be printed before
        flush()
    sys.exit(code)


def usage_line(error: click.ClickException) -> str:
    """A click error in one line, in the style of Stemma's errors."""
    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx else "stemma"
    if isinstance(error, click.NoSuchOption):
        known = [opt for p in ctx.command.get_params(ctx) for opt in p.opts] if ctx else []
        return f"{path} has no option {error.option_name}{did_you_mean(error.option_name, known)}"
    if isinstance(error, click.MissingParameter) and error.param is not None and ctx:
        return f"{path} needs {error.param.make_metavar(ctx)}; see `{path} --help`"
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and ctx and isinstance(ctx.command, click.Group):
        return f"{path} needs a command: {', '.join(ctx.command.list_commands(ctx))}; see `{path} --help`"
    text = error.format_message().rstrip(".")
    return text[:1].lower() + text[1:]


# ---------------------------------------------------------------- shared by the commands


def command(**settings: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Declare a command with the common options."""
    return click.command(cls=Command, **settings)


def overrides(items: tuple[str, ...]) -> dict[str, str]:
    """`--set PATH=VALUE` options as a mapping. Raises UsageError for one of another form."""
    pairs: dict[str, str] = {}
    for item in items:
        path, equals, value = item.partition("=")
        if not equals or not path.strip():
            raise UsageError(f"--set {item!r} is not PATH=VALUE, such as --set dims.layers=4")
        pairs[path.strip()] = value.strip()
    return pairs


def emit(data: Any) -> None:
    """Print plain data as JSON."""
    echo(json_text(data, indent=2))


def json_text(data: Any, indent: int | None = None) -> str:
    """Plain data as JSON, in which terminals find no control characters."""
    import json

    text = json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False)
    return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)


def existing_runs(paths: tuple[str, ...]) -> list[Path]:
    """The run directories at `paths`. Raises UsageError for one that is not a run."""
    for path in paths:
        if not Path(path, "run.json").is_file():
            there = "is a file" if Path(path).exists() else "does not exist"
            what = "holds no run.json" if Path(path).is_dir() else there
            from stemma.disk import nearest_path

            near = "" if Path(path).exists() else nearest_path(path)
            cure = near or f"; `stemma pretrain ... --out {path}` makes one"
            raise UsageError(f"{path} is not a run: it {what}{cure}")
    return [Path(path) for path in paths]
