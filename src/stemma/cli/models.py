"""`generate`, `fill`, `embed`: what to do with a checkpoint."""

from __future__ import annotations

import functools
import heapq
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from stemma import disk
from stemma.cli import command, console, echo, emit, json_text
from stemma.cli.complete import complete_paths
from stemma.cli.prompts import Texts, encoded, in_hard_prompts, lines_of, unescaped
from stemma.errors import UsageError

PATH = click.argument("path", metavar="PATH", shell_complete=complete_paths)
LANGUAGE = click.option("--language", default=None, help="What the text is in, for models that ask for it (XLM).")
LOADING = (
    click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
    click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16, float16 or auto."),
    click.option("--adapter", multiple=True, metavar="DIR", help="An adapter (PEFT's folder, a run). Repeatable."),
    click.option(
        "--quantize",
        type=click.Choice(["nf4", "int8", "q8_0", "q4_0", "q4_1", "keep"]),
        help="Matrices in 4 or 8 bits, or as in the file.",
    ),
)


class Loading(NamedTuple):
    """How a command reads its model: the options of `LOADING`."""

    device: str = "cpu"
    dtype: str = "float32"
    adapter: tuple[str, ...] = ()
    quantize: str | None = None


def loading(called: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of `LOADING`, which it gets as one `how`."""

    @functools.wraps(called)
    def gathered(*args: Any, **options: Any) -> None:
        how = Loading(**{name: options.pop(name) for name in Loading._fields})
        called(*args, how=how, **options)

    made: Callable[..., None] = gathered
    for option in reversed(LOADING):
        made = option(made)
    return made


def load(path: str, how: Loading, stream: bool = False) -> Any:
    """The model at `path`: a checkpoint's folder, a run (its `model`), a checkpoint of a run, a GGUF file or a hub
    id. `stream`: its weights may stay in the file (see `formats.stream`)."""
    device, dtype = how.device, how.dtype
    if not path:
        raise UsageError("PATH is empty; give a folder, a run, a GGUF file or a hub id")
    import torch

    import stemma
    from stemma import formats

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {device}: this torch sees no CUDA device; use --device cpu")
    try:
        torch.device(device)
    except RuntimeError:
        raise UsageError(f"--device {device!r} is no device; use auto, cpu or cuda") from None
    from stemma.rewrites.frozen import note
    from stemma.train import midway

    if midway.is_checkpoint(Path(path)):
        if how.adapter or how.quantize:
            raise UsageError(f"{path} is a checkpoint of a run; --adapter and --quantize are for whole models")
        kind = None if dtype == "auto" else formats.dtype_of(dtype)
        return midway.load_checkpoint(Path(path)).to(device=device, dtype=kind)
    if stream:
        return formats.stream(path, dtype)
    model = stemma.load(path, device=device, dtype=dtype, adapter=how.adapter, quantize=how.quantize)
    if how.quantize:
        disk.tell(f"note: {note(model)}")
    return model


def piped(texts: tuple[str, ...], what: str) -> list[str]:
    """The texts given, or else standard input as one text."""
    if texts:
        return list(texts)
    if not sys.stdin.isatty() and (text := sys.stdin.read().strip("\n")):
        return [text]
    raise UsageError(f"give {what} after PATH, or pipe one in")


def biased(text: str) -> tuple[int | str, float]:
    """A token, by id or name, and a number."""
    token, _, number = text.rpartition("=")
    try:
        return (int(token) if token.isdecimal() else token), float(number)
    except ValueError:
        raise UsageError(f"--logit-bias {text!r} should be TOKEN=NUMBER, as 50256=-100 is") from None


SAMPLING = (  # the options of `decoding.SamplingParams`
    click.option("-n", "--max-new-tokens", type=int, help="The most tokens to write.  [default: PATH's, else 64]"),
    click.option("--min-new-tokens", type=int, help="The fewest before a text may end."),
    click.option("--temperature", type=float, help="0 takes the likeliest token, more draws."),
    click.option("--top-k", type=int, help="Draw from the K likeliest tokens; 0 is all."),
    click.option("--top-p", type=float, help="... from the likeliest with this share."),
    click.option("--min-p", type=float, help="... from those this likely beside the best."),
    click.option("--typical-p", type=float, help="... from those nearest to the entropy, with this share."),
    click.option("--seed", type=int, default=0, show_default=True, help="Decides what is drawn."),
    click.option("--num-beams", type=int, help="Search with so many beams, draw nothing."),
    click.option("--length-penalty", type=float, help="Beams: above 0 favours long texts, below short ones."),
    click.option(
        "--early-stopping",
        type=click.Choice(["true", "false", "never"]),
        callback=lambda ctx, param, value: {"true": True, "false": False}.get(value, value),
        help="Beams: end with the first full set, or look on for better ones.",
    ),
    click.option("--penalty-alpha", type=float, default=0.0, help="Contrastive search among --top-k; 0.6 is usual."),
    click.option("--repetition-penalty", type=float, help="On tokens that were there; 1 is none."),
    click.option("--presence-penalty", type=float, default=0.0, help="Taken from the logit of what was written."),
    click.option("--frequency-penalty", type=float, default=0.0, help="... and so much for each time that it was."),
    click.option(
        "--logit-bias",
        multiple=True,
        metavar="TOKEN=NUMBER",
        callback=lambda ctx, param, value: tuple(map(biased, value)),
        help="Add NUMBER to the logit of a token, by name or id. Repeatable.",
    ),
    click.option("--no-repeat-ngram-size", type=int, help="No run of so many tokens occurs twice; 0 is off."),
    click.option("--forced-bos", metavar="TOKEN", help="First token written, by name or id (mBART-50: the language)."),
    click.option("--forced-eos", metavar="TOKEN", help="Last token, where a text has not ended before."),
    click.option("--decoder-start", metavar="TOKEN", help="What an encoder-decoder's text begins after."),
    click.option("--eos", multiple=True, metavar="TOKEN", help="Ends a text, in place of PATH's own. Repeatable."),
    click.option("--ignore-eos", is_flag=True, help="Go on past the end, to the full length."),
    click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        callback=lambda ctx, param, value: tuple(map(unescaped, value)),
        help=r"End before this text; \n is a line end. Repeatable.",
    ),
    click.option("--json-schema", type=click.Path(exists=True), metavar="FILE", help="Write JSON of this schema."),
    click.option("--regex", metavar="PATTERN", help="Write what matches this regular expression as a whole."),
    click.option("--grammar", type=click.Path(exists=True), metavar="FILE", help="Write a text of this Lark grammar."),
    click.option("--lookup", type=int, metavar="N", help="Guess N tokens ahead from the text: repeats come faster."),
)


def sampling(called: Callable[..., None]) -> Callable[..., None]:
    """A command with all options of `SAMPLING`."""
    for option in reversed(SAMPLING):
        called = option(called)
    return called


def params(model: Any, options: dict[str, Any]) -> Any:
    """The `SamplingParams` of a command's options."""
    from stemma.decoding import Lookup, SamplingParams, generation_config

    for short in ("forced_bos", "forced_eos", "decoder_start"):
        token = options.pop(short)
        options[f"{short}_token_id"] = int(token) if token is not None and token.isdecimal() else token
    ends = tuple(int(token) if token.isdecimal() else token for token in options.pop("eos"))
    options["eos_token_id"] = ends or None
    options["guide"] = guide(options.pop("json_schema"), options.pop("regex"), options.pop("grammar"))
    ahead = options.pop("lookup")
    options["speculate"] = None if ahead is None else Lookup(ahead)
    if options["max_new_tokens"] is None and generation_config.max_new_tokens(model) is None:
        options["max_new_tokens"] = 64
    return SamplingParams(**options)


def guide(schema: str | None, pattern: str | None, grammar: str | None) -> Any:
    """The form of a text, of the options --json-schema, --regex and --grammar; None without them."""
    from stemma.decoding import guides

    if sum(x is not None for x in (schema, pattern, grammar)) > 1:
        raise UsageError("a text has one form: give one of --json-schema, --regex and --grammar")
    if schema is not None:
        return guides.json_schema(disk.read_text(Path(schema)))
    if grammar is not None:
        return guides.grammar(disk.read_text(Path(grammar)))
    return None if pattern is None else guides.regex(pattern)


@command()
@PATH
@click.argument("prompts", nargs=-1, metavar="PROMPT...")
@sampling
@click.option("--choices", "n", type=click.IntRange(min=1), default=1, help="Texts for each PROMPT.  [default: 1]")
@click.option("--best-of", type=click.IntRange(min=1), help="Write so many, print the likeliest --choices of them.")
@click.option("--reward", "rewards", multiple=True, metavar="R",
              help="... those with the highest reward: FILE.py:name, a reward model, builtin:NAME.")  # fmt: skip
@click.option("--stream/--no-stream", default=None, help="Print text as it comes.  [default: on a terminal]")
@click.option(
    "--echo/--no-echo", "repeat", default=None, help="Print the PROMPT before its text.  [default: on a terminal]"
)
@click.option("--whole", is_flag=True, help="Standard input is one PROMPT, not one a line.")
@click.option("--special", is_flag=True, help="Names of special tokens in a PROMPT (<|im_start|>) are these tokens.")
@click.option("--task", metavar="TASK", help="Of a model with hard prompts: whose stands around each PROMPT.")
@click.option("--bare", is_flag=True, help="... none of them.")
@LANGUAGE
@click.option("--json", "as_json", is_flag=True, help="Print texts, ids and log-probabilities as JSON.")
@click.option("--batch", metavar="FILE", help="Requests in OpenAI's batch format, in place of PROMPTs.")
@click.option("--out", metavar="FILE", help="... the file that their answers are added to.")
@loading
def generate(
    path: str,
    prompts: tuple[str, ...],
    batch: str | None,
    out: str | None,
    stream: bool | None,
    repeat: bool | None,
    whole: bool,
    special: bool,
    task: str | None,
    bare: bool,
    as_json: bool,
    rewards: tuple[str, ...],
    how: Loading,
    **options: Any,
) -> None:
    """Continue each PROMPT with the model at PATH (a folder, a run, a GGUF file or a hub id).

    Without a PROMPT, every line of standard input is one. Equal PROMPTs that are drawn get different texts. Options
    that are left out are as the checkpoint's generation_config.json has them; where that says nothing either, the
    likeliest token is taken. Ctrl-C prints what there is so far.

    --batch answers a file of requests (a JSON object a line: custom_id, url such as /v1/chat/completions, body), many
    at once. The same command goes on with what --out has no answer to. How texts are drawn is each body's own.
    """
    if batch is not None or out is not None:
        return in_batch(path, how, batch, out, prompts)
    from stemma.decoding import generation_config

    texts = list(prompts) or (piped((), "a PROMPT") if whole else lines_of(piped((), "a PROMPT")[0]))
    keep = best_by(rewards, options, bool(stream), as_json)
    model = load(path, how)
    asked = params(model, options)
    at_once = several(options) or generation_config.num_beams(model, asked) > 1
    heads, printed = printer(model, texts, repeat, stream, as_json, at_once)
    asking = encoded(model, texts if bare else in_hard_prompts(path, texts, task), special)
    results = chosen(continued(model, asking, asked, printed, at_once and not stream), texts, rewards, keep)
    if as_json or not printed.live:
        show(as_json, texts, heads, results)


def printer(
    model: Any, texts: list[str], repeat: bool | None, stream: bool | None, as_json: bool, at_once: bool
) -> tuple[list[str], Texts]:
    """What stands before each text, and what prints texts as they come."""
    from stemma.decoding import inputs

    terminal = sys.stdout.isatty()
    heads = texts if (terminal if repeat is None else repeat) and not inputs.answers(model) else [""] * len(texts)
    return heads, Texts(heads, live=not as_json and (stream if stream is not None else terminal and not at_once))


def best_by(rewards: tuple[str, ...], options: dict[str, Any], stream: bool, as_json: bool) -> int:
    """How many of a prompt's texts are printed. Where rewards choose them, all of --best-of are written as choices.
    Raises UsageError for rewards that have nothing to choose from, and for a stream of what is there at once."""
    keep = int(options["n"])
    if rewards:
        if (many := options["best_of"]) is None or many < keep:
            raise UsageError(f"--reward chooses among several texts: give --best-of N, at least {max(2, keep)}")
        options["n"], options["best_of"] = many, None
    if stream and (as_json or several(options)):
        raise UsageError("--stream goes without --num-beams, --choices, --best-of, --penalty-alpha and --json")
    return keep


def chosen(results: list[Any], texts: Sequence[str], rewards: tuple[str, ...], keep: int) -> list[Any]:
    """Of each prompt's texts the `keep` with the highest reward; without rewards all of them."""
    if not rewards:
        return results
    from stemma.alignment.best import ranked
    from stemma.alignment.scoring import scoring

    with scoring(rewards) as score:
        return ranked(results, texts, score, keep)


def several(options: dict[str, Any]) -> bool:
    """Whether options ask for texts that are there at once."""
    one = (options["num_beams"] or 1) == 1 and options["n"] == 1 and options["best_of"] is None
    return not one or options["penalty_alpha"] > 0


def show(as_json: bool, texts: Sequence[str], heads: Sequence[str], results: Sequence[Any]) -> None:
    """Print all choices of all prompts."""
    if as_json:
        emit([told(text, choice) for text, r in zip(texts, results, strict=True) for choice in r.choices])
    else:
        echo("\n\n".join(h + (c.text or "") for h, r in zip(heads, results, strict=True) for c in r.choices))


def told(prompt: str, one: Any) -> dict[str, Any]:
    """A result as --json prints it."""
    return {"prompt": prompt, "text": one.text or "", "ids": one.ids, "logprobs": one.logprobs, "reason": one.reason}


def in_batch(path: str, how: Loading, batch: str | None, out: str | None, prompts: tuple[str, ...]) -> None:
    """Answer a file of requests."""
    from stemma.cli import batches

    if batch is None or prompts:
        raise UsageError("--out is for --batch FILE, which takes the place of PROMPTs")
    batches.run(path, lambda: load(path, how), batch, out)


def continued(model: Any, prompts: Any, asked: Any, printed: Texts, beams: bool) -> list[Any]:
    """The results of all prompts. If the user stops it, what was written so far is printed."""
    import stemma
    from stemma import decoding

    if beams or model.tokenizer is None:
        return list(stemma.generate(model, prompts, asked))
    results: dict[int, Any] = {}
    try:
        for event in decoding.stream(model, prompts, asked):
            if event.result is not None:
                results[event.row] = event.result
            printed.add(event.row, event.text, event.result is not None)
    except KeyboardInterrupt:
        printed.close()
        raise
    return [results[i] for i in range(len(prompts))]


@command()
@PATH
@click.argument("text", required=False)
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Guesses for each mask.")
@LANGUAGE
@click.option("--json", "as_json", is_flag=True, help="Print guesses as JSON.")
@loading
def fill(path: str, text: str | None, top: int, language: str | None, as_json: bool, how: Loading) -> None:
    """Fill every [MASK] of TEXT with the model at PATH.

    An encoder guesses one token a mask; an encoder-decoder trained on spans writes as many as it likes.
    """
    from rich.text import Text

    import stemma

    texts = piped((text,) if text is not None else (), "a TEXT")
    model = load(path, how)
    found = stemma.fill(model, texts[0], top=top, language=language)
    if as_json:
        guesses = [[{"text": g.text, "id": g.id, "p": g.probability} for g in row] for row in found.guesses]
        emit({"text": found.text, "guesses": guesses, "spans": found.spans})
        return
    out = console()
    out.print(Text(found.text, style="bold"))
    for row in found.guesses:
        out.print()
        said = [g.text if g.text.strip() else model.tokenizer.tokens([g.id])[0] for g in row]  # of a blank, its piece
        wide = max(map(len, said))
        for text, g in zip(said, row, strict=True):
            bar = "#" * round(g.probability * 40)
            out.print(Text(f"  {text:<{wide}}  {g.probability:6.1%}  ") + Text(bar, style="cyan"))
    for n, span in enumerate(found.spans):
        out.print(Text(f"  mask {n + 1}: ", style="dim") + Text(span.strip() or "(nothing)"))


@command()
@PATH
@click.argument("texts", nargs=-1, metavar="TEXT...")
@click.option(
    "--pool",
    type=click.Choice(["mean", "first", "last", "max", "pooler"]),
    default=None,
    help="What of the tokens makes the vector.  [default: what PATH says, else mean]",
)
@click.option(
    "--normalize/--no-normalize", default=None, help="Bring vectors to length 1.  [default: what PATH says, else yes]"
)
@click.option("--prompt", metavar="TEXT", help="Put this before every TEXT.  [default: what PATH says, else nothing]")
@click.option("--similar", is_flag=True, help="Print the cosine of each two texts instead, the nearest first.")
@click.option("--corpus", type=click.Path(), metavar="FILE", help="Of --similar: compare each TEXT with FILE's lines.")
@click.option("--top", type=click.IntRange(min=1), help="Only so many pairs, with --corpus of a TEXT.  [default: all]")
@click.option("--out", type=click.Path(dir_okay=False), metavar="FILE", help="Write the vectors to FILE.npy instead.")
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Texts at a time.")
@LANGUAGE
@loading
def embed(
    path: str,
    texts: tuple[str, ...],
    pool: Any,
    normalize: bool | None,
    similar: bool,
    corpus: str | None,
    top: int | None,
    out: str | None,
    batch: int,
    language: str | None,
    prompt: str | None,
    how: Loading,
) -> None:
    """Print a vector for each TEXT, a JSON line each, with the model at PATH.

    Without a TEXT, every line of standard input is one: `embed PATH --similar --corpus lines.txt --top 3 < queries.txt`
    prints the three nearest lines of each query.
    """
    import stemma

    given = list(texts) or lines_of(piped((), "a TEXT")[0])
    check_embed(len(given), similar, corpus, top, out)
    others = None if corpus is None else lines_of(disk.read_text(Path(corpus)))
    model = load(path, how)
    options: dict[str, Any] = {"pool": pool, "batch": batch, "language": language, "prompt": prompt}
    vectors = stemma.embed(model, given, normalize=similar or normalize, **options)
    if out:
        save_vectors(vectors, Path(out))
    elif not similar:
        for text, vector in zip(given, vectors.tolist(), strict=True):
            echo(json_text({"text": text, "vector": [round(x, 7) for x in vector]}))
    elif others is not None:
        against(given, vectors, others, stemma.embed(model, others, normalize=True, **options), top)
    else:
        among(given, vectors, top)


def check_embed(texts: int, similar: bool, corpus: str | None, top: int | None, out: str | None) -> None:
    """Raises UsageError for options of `embed` that do not go together."""
    if similar and corpus is None and texts < 2:
        raise UsageError("--similar compares texts: give at least two, or a --corpus")
    for name, value in (("--top", top), ("--corpus", corpus)):
        if value is not None and not similar:
            raise UsageError(f"{name} is for the pairs of --similar")
    if out is not None and (similar or not out.endswith(".npy")):
        raise UsageError("--out FILE.npy takes the vectors, and goes without --similar")


def among(texts: Sequence[str], vectors: Any, top: int | None) -> None:
    """Print the cosine of each two texts, the nearest first."""
    cosines = vectors @ vectors.T
    pairs = ((float(cosines[i, j]), i, j) for i in range(len(texts)) for j in range(i))
    for cosine, i, j in sorted(pairs, reverse=True) if top is None else heapq.nlargest(top, pairs):
        echo(f"{cosine:7.4f}  {texts[j]}  |  {texts[i]}")


def save_vectors(vectors: Any, path: Path) -> None:
    """A row a text, float32, as `numpy.load` reads it."""
    import io

    import numpy as np

    held = io.BytesIO()
    np.save(held, vectors.float().cpu().numpy())
    disk.write(path, held.getvalue())
    echo(f"{path}: {vectors.shape[0]:,} vectors of {vectors.shape[1]:,}")


def against(queries: Sequence[str], ours: Any, corpus: Sequence[str], theirs: Any, top: int | None) -> None:
    """Print the cosine of each query with the lines of a corpus, the nearest first."""
    most = len(corpus) if top is None else min(top, len(corpus))
    for query, vector in zip(queries, ours, strict=True):
        cosines, lines = (theirs @ vector).topk(most)
        for cosine, line in zip(cosines.tolist(), lines.tolist(), strict=True):
            echo(f"{cosine:7.4f}  {query}  |  {corpus[line]}")
