"""What alignment came to: models asked the same held-out prompts, their rewards, lengths and divergences, and their
answers side by side.

OUT/outcome.json   the numbers and the answers
OUT/outcome.html   the same as a page
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import mean
from typing import Any

import stemma
from stemma import disk, markup
from stemma.alignment import rewards as judges
from stemma.alignment.best import PURPOSE, Prompt, Score, prompts, rated
from stemma.alignment.refusals import wilson
from stemma.alignment.rollouts import Sampling
from stemma.alignment.scoring import scoring
from stemma.conversations import prompt_ids, templates
from stemma.data import random as draw
from stemma.decoding import generate, score
from stemma.errors import UsageError
from stemma.instruct.writers import prompt_of
from stemma.markup import figures
from stemma.nn.model import Model
from stemma.runs import folder
from stemma.train.prepare import read_plan

ROWS = 32  # answers written at once
TOKENS = 64  # of an answer at most


def answered(
    path: str, asked: Sequence[Prompt], tokens: int, seed: int, template: str | None
) -> tuple[Model, list[list[int]], list[Any]]:
    """(the model, the ids of the prompts, a result for each), drawn from its whole distribution at temperature 1. A
    prompt that has no room beside its answer raises UsageError."""
    model = stemma.load(path)
    writer = templates.writer(model.tokenizer, template)
    ids = [prompt_ids(model.tokenizer, prompt_of(writer, list(one.turns))) for one in asked]
    if (longest := max(map(len, ids))) + tokens > model.dims.context:
        raise UsageError(
            f"a prompt has {longest} tokens, and with {tokens} of an answer it is longer than the {model.dims.context} "
            f"that {path} reads"
        )
    seeds = draw.integers((seed, PURPOSE, 2), len(ids), 2**31).tolist()
    how = Sampling(tokens=tokens, stops=tuple(writer.stops()))  # without a checkpoint's rules, which no KL would know
    return model, ids, generate(model, ids, [how.params(one) for one in seeds], batch=ROWS)


def compared(
    models: Mapping[str, str], asked: Sequence[Prompt], rewards: Mapping[str, Score], *, reference: str = "",
    tokens: int = 64, seed: int = 1, template: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """How `models` (by name, the first of them before the rest) answer the prompts. `rewards`: what scores answers, by
    name; `win` is by the last of them, the share of prompts where a model's answer has more than the first model's,
    equal ones half. `kl`: nats an answer from the model called `reference` (the first one): the mean of log p - log
    p_reference of the drawn tokens; None where the tokenizers differ."""
    names = list(models)
    base = reference or names[0]
    found: dict[str, dict[str, Any]] = {}
    texts: dict[str, list[str]] = {}
    drawn: dict[str, tuple[list[list[int]], list[Any], int]] = {}
    values: dict[str, dict[str, list[float]]] = {}
    for name, path in models.items():
        model, ids, results = answered(path, asked, tokens, seed, template)
        texts[name] = [(result.text or "").strip() for result in results]
        values[name] = {kind: rated(own, asked, texts[name]) for kind, own in rewards.items()}
        drawn[name] = ids, results, model.dims.vocab
        found[name] = {
            **{kind: mean(numbers) for kind, numbers in values[name].items()},
            "length": mean(len(result.ids) for result in results),
            "ended": mean(result.reason != "length" for result in results),
        }
        del model
    model = stemma.load(models[base])
    for name in names:
        found[name]["kl"] = 0.0 if name == base else divergence(model, *drawn[name])
    last = list(rewards)[-1]
    for name in names[1:]:
        pairs = list(zip(values[name][last], values[names[0]][last], strict=True))
        rate = mean((new > old) + 0.5 * (new == old) for new, old in pairs)
        found[name] |= {"win": rate, "win_interval": list(wilson(round(rate * len(pairs)), len(pairs)))}
    samples = [
        {
            "prompt": one.text,
            "answers": {name: texts[name][i] for name in names},
            last: {name: values[name][last][i] for name in names},
        }
        for i, one in enumerate(asked)
    ]
    return {"prompts": len(asked), "reference": base, "rewards": list(rewards), "models": found, "samples": samples}


def of_run(run: Path, data: str, rewards: Sequence[str], *, count: int = 64) -> None:
    """Ask the weights that a finished run began from, and its model, the first prompts of `data`, judge the answers by
    `rewards` (the last one says who wins), and write RUN/outcome.json. Raises UsageError for a run that has no weights
    before it, that is not finished, or that is a chain, whose stages were judged already."""
    if (run / folder.CHAIN).is_file():
        raise UsageError(f"{run} is a chain, and its stages were judged when it ended; leave --prompts and --judge out")
    plan, _ = read_plan(run)
    if not plan.train.start:
        raise UsageError(f"{run} began from new weights, so there is nothing before it that could answer")
    if not (run / "model").is_dir():
        raise UsageError(f"{run} is not finished, so it has no model that could answer: {folder.resume_command(run)}")
    template = getattr(getattr(plan.objective, "task", None), "template", "") or None
    tokens = min(TOKENS, plan.dims.context // 2)
    models = {"before": plan.train.start, "after": str(run / "model")}
    with contextlib.ExitStack() as stack:
        scores = {judges.named(one): stack.enter_context(scoring((one,))) for one in rewards}
        found = compared(models, prompts(data)[:count], scores, tokens=tokens, seed=plan.seed, template=template)
    disk.write_json(run / "outcome.json", found)


def divergence(model: Model, ids: Sequence[list[int]], results: Sequence[Any], vocab: int) -> float | None:
    """Nats an answer by which what was drawn diverges from `model`: the mean over answers of log p - log p_model."""
    if vocab != model.dims.vocab:
        return None
    kept = [(one, result) for one, result in zip(ids, results, strict=True) if result.ids]
    theirs = score(model, [one for one, _ in kept], [[result.ids] for _, result in kept])
    return mean(sum(r.logprobs) - own.logprob for (_, r), (own,) in zip(kept, theirs, strict=True))


def save(found: Mapping[str, Any], out: Path, title: str) -> None:
    """Write OUT/outcome.json and OUT/outcome.html."""
    disk.write_json(out / "outcome.json", dict(found))
    markup.save(page(found, title), out / "outcome.html")


def line_of(name: str, one: Mapping[str, Any], rewards: Sequence[str]) -> str:
    """The numbers of a model in a line."""
    parts = [f"{kind} {one[kind]:.3f}" for kind in rewards]
    parts.append(f"length {one['length']:.1f}")
    if one["kl"]:
        parts.append(f"kl {one['kl']:.2f}")
    if "win" in one:
        low, high = one["win_interval"]
        parts.append(f"win {one['win']:.2f} ({low:.2f} to {high:.2f})")
    return f"{name}: {', '.join(parts)}"


def page(found: Mapping[str, Any], title: str) -> str:
    """A self-contained page: a table of the models, their rewards by their divergence, then answers side by side."""
    names, last = list(found["models"]), found["rewards"][-1]
    body = f"""<header>
<div class="top"><p class="kicker">Stemma alignment</p>{markup.THEME}</div>
<h1>{escape(title)}</h1>
<p class="lede">{found["prompts"]} held-out prompts, one answer each at temperature 1. A model wins where its answer has
more of {escape(last)} than that of {escape(names[0])}, ties half, with the interval of 95 of 100.</p>
</header>
<main>
<section><h2>The models</h2>{figures.models(found)}</section>
<section><h2>Answers side by side</h2><p class="note">Each with its {escape(last)}.</p>
{figures.answers(found)}</section>
</main>
<script>{markup.theme_script()}</script>"""
    return markup.document(title, body, figures.style())
