"""`help` and `completion`: about the program itself."""

from __future__ import annotations

import click

from stemma.cli import GROUPS, command, overview
from stemma.errors import UsageError, did_you_mean

EXIT_CODES = """\
  0    it worked
  1    an error of Stemma without a code of its own
  2    usage: an unknown name, option or field; a value out of range
  3    data: text that is missing, empty, binary or malformed
  4    checkpoint: weights, config or tokenizer files that are damaged or do not fit
  5    machine: disk full, out of memory, no network, a missing optional package
  6    a requested check failed (`stemma verify`)
  70   a bug in Stemma; --debug shows the traceback
  130  stopped with Ctrl-C or a signal
  141  the reader closed the output (`stemma tree | head -1`)"""


@command(name="help")
@click.argument("topic", nargs=-1)
@click.pass_context
def help(ctx: click.Context, topic: tuple[str, ...]) -> None:
    """Print the list of commands, the help of a command, or the exit codes."""
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
    """Print the set-up of tab completion, also for families and sizes.

    bash: eval "$(stemma completion bash)" in ~/.bashrc; zsh the same in ~/.zshrc; fish: `stemma completion fish |
    source` in config.fish.
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "stemma", "_STEMMA_COMPLETE").source())
