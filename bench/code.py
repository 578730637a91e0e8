"""What is special of Codex, Code LLaMA and U-PaLM, each against the same tokens without it, over seeds.

    python bench/code.py [tokens codex infill long ul2r] [--seeds 1 2 3] [--base 200] [--steps 120] [--out DIR]

Bases are small networks (two layers of 64, rows of 256 tokens) that are pretrained here for --base steps of 4,096 tokens
on docstrings (numpy's, the language reference, and those of modules that are not held out); all seeds share them. Code is
the standard library, a function or class a document; modules that are held out are read by nobody. A seed decides the
order of the text, what is cut, and new weights. What is done is kept in --out.

tokens  tokens of code with and without 24 runs of spaces; --vocab FOLDER: of a published vocabulary too
codex   bits per byte of code by step: from a text model, and from nothing
infill  words of held-out code that are restored exactly, and the loss from left to right: Code LLaMA's first stage with
        infilling and without
long    loss by place in files of four rows, before and after a stage on long rows, with both bases of the rotation
ul2r    words of held-out text: UL2R for some more tokens, and plain prediction for as many, with the same new rows
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from shared import finished, spread

import stemma
from stemma.data import builtin, cleaning, files, read
from stemma.decoding import infill
from stemma.nn.model import Model
from stemma.nn.parts import Rotary
from stemma.samples import functions
from stemma.text import Tokenizer
from stemma.text.growing import without_runs
from stemma.train import read_metrics
from stemma.tuning import tune

ROW = 256
WORDS = ("tokens", "codex", "infill", "long", "ul2r")
SIZES = {"dims.d_model": 64, "dims.layers": 2, "dims.heads": 4, "dims.vocab": 1000, "dims.context": ROW, "train.context": ROW}  # fmt: skip
SHARES = (0.01, 0.04, 0.16)  # of the base's tokens, for UL2R
WORD = re.compile(r"[A-Za-z_]{3,12}")


class Case(NamedTuple):
    """A text with a word taken out."""

    prefix: str
    middle: str
    suffix: str


# ---------------------------------------------------------------- text


def sections(texts: Iterable[str]) -> Iterator[str]:
    """Functions and classes of source files."""
    for text in texts:
        yield from (d.text for d in files.divide(text.splitlines(keepends=True), "section", "code"))


def prose(held: bool) -> Iterator[str]:
    """Docstrings of the modules that are held out, or all others."""
    for name, text in builtin.rows("docs"):
        if functions.is_held(name.partition(":")[2]) == held:
            yield text


def written(path: Path, texts: Iterable[str]) -> str:
    """A file of rows, made once."""
    if not path.exists():
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return str(path)


def cases(texts: Iterable[str], count: int, seed: int) -> list[Case]:
    """Texts with a word taken out, with at most 240 characters on each side."""
    draw, found = random.Random(seed), []
    for text in texts:
        words = [w for w in WORD.finditer(text) if w.start() > 30 and len(text) - w.end() > 30]
        if words:
            one = draw.choice(words)
            found.append(Case(text[: one.start()][-240:], one[0], text[one.end() :][:240]))
    return draw.sample(found, min(count, len(found)))


# ---------------------------------------------------------------- runs


def base(name: str, args: argparse.Namespace) -> Path:
    """A text model, made when it is first needed."""
    out = Path(args.out, f"base-{name}")
    if not (out / "summary.json").exists():
        data = written(args.out / "text.jsonl", prose(False))
        changes: dict[str, Any] = SIZES | {"recipe.batch": 4096, "train.threads": 1, "train.eval_tokens": 5000}
        more: dict[str, Any] = {"budget": f"{args.base} steps", "resume": out.exists(), "quiet": True}
        finished(stemma.pretrain(name, data=data, out=out, overrides=changes, **more))
    return out


def tuned(system: str, label: str, start: Path, data: str, seed: int, args: argparse.Namespace, **more: Any) -> Path:
    """The run of a system, made when it is first needed."""
    out = Path(args.out, f"{label}-{seed}")
    if not (out / "summary.json").exists():
        changes = {"train.threads": 1, "train.eval_tokens": 5000} | more.pop("changes", {})
        given: dict[str, Any] = {"start": str(start), "data": data, "seed": seed, "quiet": True, "resume": True}
        finished(tune(system, out=out, overrides=changes, **{"budget": f"{args.steps} steps"} | given | more))
    return out


# ---------------------------------------------------------------- measures


@torch.inference_mode()
def by_place(model: Model, texts: Iterable[list[int]], edges: list[int]) -> list[float]:
    """The mean loss of the tokens between each two `edges`, in texts as long as the last."""
    sums, counts = [0.0] * (len(edges) - 1), [0] * (len(edges) - 1)
    for ids in texts:
        row = torch.tensor([ids[: edges[-1] + 1]])
        found = torch.nn.functional.cross_entropy(model(row[:, :-1]).logits[0], row[0, 1:], reduction="none")
        for k, (a, b) in enumerate(itertools.pairwise(edges)):
            sums[k] += float(found[a:b].sum())
            counts[k] += len(found[a:b])
    return [s / max(1, n) for s, n in zip(sums, counts, strict=True)]


@torch.inference_mode()
def restored(
    model: Model, prompts: list[list[int]], middles: list[list[int]], prefix: bool = False
) -> dict[str, float]:
    """Of the words behind prompts: the share that greedy decoding writes exactly, and the loss of a token."""
    exact, loss, count = 0, 0.0, 0
    for prompt, middle in zip(prompts, middles, strict=True):
        ids = torch.tensor([[*prompt, *middle[:-1]]])
        more = {"prefix": torch.tensor([len(prompt)])} if prefix else {}
        logits = model(ids, **more).logits[0, len(prompt) - 1 :]
        goal = torch.tensor(middle)
        loss += float(torch.nn.functional.cross_entropy(logits, goal, reduction="sum"))
        count += len(middle)
        exact += bool((logits.argmax(-1) == goal).all())
    return {"exact": exact / len(prompts), "loss": loss / count}


def ahead(model: Model, held: list[Case]) -> dict[str, float]:
    """Words from the text before them alone."""
    known = model.tokenizer
    first = [] if known.bos_id is None else [known.bos_id]
    prompts = [[*first, *known.encode(case.prefix, add_special=False)] for case in held]
    return restored(model, prompts, [known.encode_continuation(case.middle) for case in held])


# ---------------------------------------------------------------- experiments


def count_tokens(args: argparse.Namespace) -> dict[str, Any]:
    """Tokens of filtered source files, with a vocabulary of docstrings that knows no runs of spaces and with a
    published one, where it is given."""
    tallies: list[Any] = []
    texts = [d.text for d in cleaning.clean(read("builtin:code").documents(), cleaning.parse("exact,code"), tallies)]
    specials = stemma.load(base("gpt3", args)).tokenizer.specials
    made = {"8,000 of docstrings": Tokenizer.train("bpe", without_runs(prose(False)), 8000, specials)}
    if args.vocab:
        made["published"] = Tokenizer.load(args.vocab)
    found: dict[str, Any] = {"removed": [tally.sentence() + tally.reasons() for tally in tallies]}
    for name, known in made.items():
        amounts = [sum(map(len, t.encode_batch(texts, add_special=False))) for t in (known, known.grown(0, (), 25))]
        found[name] = {"without": amounts[0], "with": amounts[1], "saved": 1 - amounts[1] / amounts[0]}
    return found


def codex(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Bits per byte at eighths of the run."""
    start = base("gpt3", args)
    new = Path(args.out, f"new-{seed}")
    model = stemma.load(start)
    stemma.save(model.initialise(seed), new)
    data = written(args.out / "code.jsonl", sections(functions.modules()))
    found = {}
    for name, where in (("text", start), ("nothing", new)):
        changes = {"train.eval_every": max(1, args.steps // 8)}
        run = tuned("codex", f"codex-{name}", where, data, seed, args, changes=changes)
        found[name] = {
            f"step {r['step']}": r["val_bits_per_byte"] for r in read_metrics(run) if "val_bits_per_byte" in r
        }
    return found


def middles(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Code LLaMA's first stage with infilling and without: held-out words, and the loss from left to right."""
    start, data = base("llama", args), written(args.out / "code.jsonl", sections(functions.modules()))
    held = list(sections(functions.modules(held=True)))
    words = cases(held, args.cases, seed)
    found: dict[str, Any] = {}
    for name, changes in (("infilling", {}), ("plain", {"objective": "CLM()"})):
        run = tuned("codellama", f"infill-{name}", start, data, seed, args, stage=1, changes=changes)
        model = stemma.load(run)
        known = model.tokenizer
        texts = [[known.bos_id, *known.encode(text, add_special=False)] for text in held[:: max(1, len(held) // 150)]]
        found[name] = {"left to right": by_place(model, texts, [0, ROW])[0], "ahead": ahead(model, words)}
        if (tokens := infill.infill_tokens(model)) is not None:
            prompts = [infill.prompt(model, case.prefix, case.suffix) for case in words]
            goals = [[*known.encode_continuation(case.middle), tokens.end] for case in words]
            found[name]["infilling"] = restored(model, prompts, goals)
    return found


def long_rows(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The stage on rows four times as long, with the larger base and with the old one, and neither trained."""
    start = tuned(
        "codellama", "infill-infilling", base("llama", args), str(args.out / "code.jsonl"), seed, args, stage=1
    )
    data = written(args.out / "files.jsonl", functions.modules())
    known, edges = stemma.load(start).tokenizer, [0, ROW, 2 * ROW, 4 * ROW]
    encoded = ([known.bos_id, *known.encode(text, add_special=False)] for text in functions.modules(held=True))
    texts = [ids for ids in encoded if len(ids) > edges[-1]][: args.files]
    found = {}
    for theta in (1e4, 1e6):
        plain = stemma.load(start)
        assert isinstance(plain.arch.position, Rotary)
        position = replace(plain.arch.position, base=theta)
        model = Model(replace(plain.arch, position=position), replace(plain.dims, context=edges[-1])).eval()
        model.load_state_dict(plain.state_dict())
        found[f"{theta:g} untrained"] = by_place(model, texts, edges)
        run = tuned("codellama", f"long-{theta:g}", start, data, seed, args, stage=2,
                    budget=f"{max(1, args.steps // 8)} steps", changes={"arch.position.base": theta})  # fmt: skip
        found[f"{theta:g} trained"] = by_place(stemma.load(run), texts, edges)
    return found


def ul2r(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Words of held-out text after some more tokens of UL2R, from both sides, and of plain prediction, from one."""
    start, data = base("palm", args), str(args.out / "text.jsonl")
    words = cases(prose(True), args.cases, seed)
    found: dict[str, Any] = {"base": {"ahead": ahead(stemma.load(start), words)}}
    plain = {"objective": "CLM()", "arch.mask": "Causal()"}
    for share in SHARES:
        steps = max(1, round(share * args.base * 4))  # of 1,024 tokens
        for name, changes in (("ul2r", {}), ("plain", plain)):
            model = stemma.load(tuned("u-palm", f"{name}-{share:g}", start, data, seed, args, budget=f"{steps} steps",
                                      changes={"recipe.batch": 1024, **changes}))  # fmt: skip
            if name == "plain":
                found[f"plain {share:g}"] = {"ahead": ahead(model, words)}
                continue
            known = model.tokenizer
            mode, first, second = known.id("[NLU]"), known.sentinel(0), known.sentinel(1)
            sides = [(known.encode(c.prefix, add_special=False), known.encode_continuation(c.suffix)) for c in words]
            prompts = [[mode, *before, first, *after] for before, after in sides]
            goals = [[first, *known.encode_continuation(case.middle), second] for case in words]
            # the first sentinel is given: what is asked for is the word, and no more than it
            answers = restored(model, [[*p, first] for p in prompts], [goal[1:-1] for goal in goals], True)
            found[f"ul2r {share:g}"] = {"between": answers}
    return found


# ---------------------------------------------------------------- tables


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The numbers in a result, with the names that lead to them."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not isinstance(value, dict | list):
        yield path, value
    for key, held in inner:
        yield from leaves(held, (*path, str(key)))


def table(name: str, done: dict[str, Any], seeds: list[int]) -> None:
    """The mean of every number over the seeds, with the least and the most."""
    held = [done[f"{name}:{seed}"] for seed in seeds if f"{name}:{seed}" in done]
    print(f"\n{name}, {len(held)} seeds: mean (least to most)")
    for path, _ in leaves(held[0]):
        values = [dict(leaves(one))[path] for one in held]
        print(f"  {' / '.join(path):34} {spread(values) if not isinstance(values[0], str) else values[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=[], help=", ".join(WORDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--base", type=int, default=200, help="steps of a base")
    parser.add_argument("--steps", type=int, default=120, help="steps of a system")
    parser.add_argument("--cases", type=int, default=300, help="held-out words")
    parser.add_argument("--files", type=int, default=20, help="held-out files of long rows")
    parser.add_argument("--vocab", type=Path, help="a folder with a published byte-level vocabulary")
    parser.add_argument("--out", type=Path, help="[default: a folder that is removed]")
    args = parser.parse_args()
    if wrong := [word for word in args.what if word not in WORDS]:
        parser.error(f"{wrong[0]!r} is none of {', '.join(WORDS)}")
    args.out = args.out or Path(tempfile.mkdtemp())
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "results.json"
    done: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    torch.set_num_threads(1)
    ways = {"codex": codex, "infill": middles, "long": long_rows, "ul2r": ul2r}
    for name in args.what or WORDS:
        seeds = [0] if name == "tokens" else args.seeds
        for seed in seeds:
            if (key := f"{name}:{seed}") not in done:
                done[key] = count_tokens(args) if name == "tokens" else ways[name](seed, args)
                kept.write_text(json.dumps(done, indent=2) + "\n")
        table(name, done, seeds)


if __name__ == "__main__":
    main()
