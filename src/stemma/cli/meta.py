"""`help` and `completion`: about the program itself."""

from __future__ import annotations

import click

from stemma.cli import GROUPS, command, overview
from stemma.errors import UsageError, did_you_mean

EXIT_CODES = """\
  0    it worked
  1    an error of Stemma's that has no code of its own
  2    usage: an unknown name, option or field; a value out of range
  3    data: text that is missing, empty, binary or malformed
  4    checkpoint: weights, config or tokenizer files that are damaged or do not fit
  5    machine: disk full, out of memory, no network, an optional package missing
  6    a check that was asked for did not hold (`stemma verify`)
  70   a mistake of Stemma's own; --debug shows where
  130  stopped with Ctrl-C
  141  the reader of the output went away (`stemma tree | head -1`)"""


@command(name="help")
@click.argument("topic", nargs=-1)
@click.pass_context
def help(ctx: click.Context, topic: tuple[str, ...]) -> None:
    """Print the map of commands, the help of a command, or the exit codes."""
    if not topic:
        click.echo(overview())
        return
    if topic == ("exit-codes",):
        click.echo("Exit codes\n" + EXIT_CODES)
        return
    root_ctx = ctx.find_root()
    here, found = root_ctx, root_ctx.command
    for word in topic:
        inner = found.get_command(here, word) if isinstance(found, click.Group) else None
        if inner is None:
            known = [name for rows in GROUPS.values() for name, *_ in rows] + ["exit-codes"]
            hint = did_you_mean(word, known) or f"; there is help on {', '.join(known)}"
            raise UsageError(f"no help on {' '.join(topic)!r}{hint}")
        here, found = click.Context(inner, info_name=word, parent=here), inner
    click.echo(found.get_help(here))


@command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the set-up of tab completion, which knows families and sizes.

    bash: eval "$(stemma completion bash)" in ~/.bashrc; zsh the same in ~/.zshrc; fish: `stemma completion fish |
    source` in config.fish.
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "stemma", "_STEMMA_COMPLETE").source())
