"""The report as HTML: sections over runs, drawn with inline CSS, SVG and one short script."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

import stemma
from stemma.errors import UsageError
from stemma.markup import THEME, asset, document, figures, theme_script
from stemma.report import alignment as goals
from stemma.report.alignment import aligned, alignment
from stemma.report.facts import (
    baselines,
    detected,
    duration,
    first_of,
    held_out,
    k,
    kind_text,
    labels,
    last,
    losses,
    majority,
    named,
    no_bits,
    number,
    owner,
    quality,
    seconds_of,
    short,
    smoothed,
    speed_of,
    start_of,
    tokens_of,
)
from stemma.report.kinship import family_tree
from stemma.report.read import RunFiles
from stemma.report.samples import samples
from stemma.report.tasks import headline, predictions

POINTS = 400  # points of a curve, at most
DASHES = ("", "9 5", "3 4", "12 4 3 4", "6 3", "2 6")
NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six")


def render(runs: Sequence[RunFiles], title: str | None = None) -> str:
    """The whole page. Raises UsageError without runs."""
    if not runs:
        raise UsageError("a report needs at least one run")
    sections = [
        ("results", "Results", results(runs)),
        ("tree", "The family", family_tree(runs)),
        ("loss", "Learning", curves(runs)),
        ("alignment", "What was aimed at", alignment(runs)),
        ("predictions", "Predictions", predictions(runs)),
        ("bits", "Bits per byte", bits(runs)),
        ("samples", "In their own words", samples(runs)),
        ("speed", "Speed", speed(runs)),
        ("runs", "How each was made", details(runs)),
    ]
    shown = [(key, head, body) for key, head, body in sections if body]
    title = title or default_title(runs)
    nav = "".join(f'<a href="#{key}">{escape(head)}</a>' for key, head, _ in shown)
    main = "".join(
        f'<section id="{key}" aria-labelledby="h-{key}"><h2 id="h-{key}">{escape(head)}</h2>{body}</section>'
        for key, head, body in shown
    )
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    body = f"""<header>
<div class="top"><p class="kicker">Stemma report</p>{THEME}</div>
<h1>{escape(title)}</h1>
<p class="lede">{lede(runs)}</p>
<nav aria-label="Sections">{nav}</nav>
</header>
<main>{main}</main>
<footer>Written by Stemma {escape(stemma.__version__)} on {now}. This file is complete: it loads nothing.</footer>
<script type="application/json" id="curves">{curve_data(runs)}</script>
<script>{theme_script()}{asset(__file__, "chart.js")}</script>"""
    return document(f"{title} - Stemma", body, figures.style() + asset(__file__, "style.css"))


# ---------------------------------------------------------------- head and cards


def default_title(runs: Sequence[RunFiles]) -> str:
    if len(runs) == 1:
        return f"{runs[0].name}, trained"
    count = NUMBERS[len(runs)] if len(runs) < len(NUMBERS) else str(len(runs))
    relatives = all(owner(run) is not None for run in runs) and len({run.name for run in runs}) > 1
    same = len({tokens_of(run) for run in runs}) == 1 and tokens_of(runs[0])
    return f"{count} {'relatives' if relatives else 'runs'}{', one budget' if same else ''}"


def lede(runs: Sequence[RunFiles]) -> str:
    names = [f'<span class="name {k(i)}">{escape(n)}</span>' for i, n in enumerate(labels(runs))]
    joined = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    data = {str(run.plan["data"]) for run in runs if run.plan.get("data")}
    on = f" on <code>{escape(data.pop())}</code>" if len(data) == 1 else ""
    tokens = {tokens_of(run) for run in runs}
    budget = next(iter(tokens))
    each = f", {short(budget)} tokens{' each' if len(runs) > 1 else ''}" if len(tokens) == 1 and budget else ""
    total = sum(seconds_of(run) or 0 for run in runs)
    time = f", in {duration(total)}{' together' if len(runs) > 1 else ''}" if total else ""
    return f"{joined}, {weights_text(runs)}{on}{each}{time}."


def weights_text(runs: Sequence[RunFiles]) -> str:
    """What the weights of the runs were before training."""
    starts = [start_of(run) for run in runs]
    if not any(starts):
        return "trained from nothing"
    if len(set(starts)) == 1:
        return f"trained from the weights of <code>{escape(starts[0])}</code>"
    return "trained from given weights" if all(starts) else "trained from nothing or from given weights"


def results(runs: Sequence[RunFiles]) -> str:
    cards = []
    for i, run, name in named(runs):
        found = quality(run)
        if found is not None:
            big = f"{found[0]:.3f} <small>bits per byte{'' if found[1] else ' of hidden text'}</small>"
        elif (right := detected(run)) is not None:
            big = detector_text(right, majority(run))
        elif (metric := headline(run) or goals.headline(run)) is not None:
            big = metric
        elif (loss := last(run, "loss")) is not None:
            big = f"{loss:.3f} <small>last loss, nats a target</small>"
        else:
            big = "<small>no step was recorded</small>"
        rows = [
            ("parameters", short(first_of(run, "parameters"))),
            ("tokens", short(tokens_of(run))),
            ("time", duration(seconds_of(run))),
            ("speed", short(speed_of(run), " tokens/s")),
            ("compute", short(first_of(run, "flops"), " FLOPs")),
        ]
        if start := start_of(run):
            rows.append(("weights from", start))
        if (each := losses(run)) and goals.headline(run) is None:  # else it is a surrogate, which says nothing
            rows.insert(0, ("loss, first to last", f"{each[0]:.2f} to {smoothed(each)[-1]:.2f}"))
        dl = "".join(f"<dt>{a}</dt><dd>{escape(b)}</dd>" for a, b in rows if b != "-")
        warn = "".join(f'<p class="note warn">{escape(w)}</p>' for w in run.warnings)
        cards.append(
            f'<article class="card {k(i)}"><h3>{escape(name)} <span class="kind">{escape(kind_text(run))}</span></h3>'
            f'<p class="big">{big}</p><dl>{dl}</dl>{warn}</article>'
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def detector_text(right: float, majority: float | None) -> str:
    """What a detector of replaced tokens achieves: most tokens are original, so its accuracy alone says little."""
    rightly = f"{right:.1%} of the tokens rightly called replaced or original"
    if majority is None:
        return f"<small>{rightly} (the share of the commoner answer was not recorded)</small>"
    points = round(100 * (right - majority), 1) + 0.0
    same = f"{majority:.1%} if every token got the same answer"
    return f"{points:+.1f} <small>points above the commoner answer: {rightly}, {same}</small>"


# ---------------------------------------------------------------- curves


def points(run: RunFiles) -> list[list[float]]:
    """[tokens, seconds, loss, smoothed loss] of at most POINTS points, each a mean of neighbours."""
    rows = []
    for row in run.steps:
        loss = number(row.get("loss"))
        if loss is None:
            continue
        tokens = number(row.get("tokens"))
        seconds = number(row.get("seconds"))
        rows.append([tokens if tokens is not None else number(row.get("step")) or 0.0, seconds or 0.0, loss])
    smooth = smoothed([r[2] for r in rows])
    full = [[*r, s] for r, s in zip(rows, smooth, strict=True)]
    size = math.ceil(len(full) / POINTS) if full else 1
    groups = [full[i : i + size] for i in range(0, len(full), size)]
    return [[float(f"{sum(c) / len(g):.5g}") for c in zip(*g, strict=True)] for g in groups]


def curve_data(runs: Sequence[RunFiles]) -> str:
    data = [
        {"name": name, "k": i % 6, "dash": DASHES[i % len(DASHES)], "points": pts, "held": held_out(run)}
        for i, run, name in named(runs)
        if len(pts := points(run)) > 1
    ]
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def curves(runs: Sequence[RunFiles]) -> str:
    drawn = [(i, run, name) for i, run, name in named(runs) if len(points(run)) > 1]
    if not drawn:
        return ""
    borders = ("solid", "dashed", "dotted", "dashed", "dashed", "dotted")
    legend = "".join(
        f'<li class="{k(i)}"><i style="--dash:{borders[i % 6]}"></i>{escape(name)}</li>' for i, _, name in drawn
    )
    shares = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    head = "".join(f'<th class="n" scope="col">{s:.0%}</th>' for s in shares)
    head += '<th class="n" scope="col">held out, at the end</th>'
    body = ""
    for i, run, name in drawn:
        pts = points(run)
        held = held_out(run)
        values = [(f"{s:.0%}", f"{pts[round(s * (len(pts) - 1))][3]:.3f}") for s in shares]
        values.append(("held out, at the end", f"{held[-1][2]:.3f}" if held else "-"))
        cells = "".join(f'<td class="n" data-label="{title}">{value}</td>' for title, value in values)
        body += f'<tr><th scope="row" class="name {k(i)}">{escape(name)}</th>{cells}</tr>'
    several = len({json.dumps(run.plan.get("objective"), sort_keys=True) for _, run, _ in drawn}) > 1
    evaluated = [len(held_out(run)) for _, run, _ in drawn]
    lines = "Faint: each step; bold: a running mean"
    if max(evaluated) > 0:
        lines += "; rings: held-out text"
    if max(evaluated) == 1:
        lines += ", measured at the end alone (<code>--set train.eval_every=100</code> measures it on the way)"
    apart = (
        "These models predict different things (any masked word, the next one, a removed span), so compare the shapes "
        "of the curves, not their heights. "
    )
    note = f'<p class="note">{apart if several else ""}{lines}.</p>'

    def choice(name: str, legend: str, options: Sequence[tuple[str, str]]) -> str:
        boxes = "".join(
            f'<label><input type="radio" name="{name}" value="{value}"{" checked" if n == 0 else ""}>{text}</label>'
            for n, (value, text) in enumerate(options)
        )
        return f"<fieldset><legend>{legend}</legend>{boxes}</fieldset>"

    return (
        note
        + '<div class="needs-script" hidden><div class="tools">'
        + choice("x", "Over", [("tokens", "tokens"), ("time", "time")])
        + choice("y", "Scale", [("linear", "linear"), ("log", "log")])
        + f'</div><ul class="legend">{legend}</ul><div class="frame"><svg class="plot" tabindex="0" role="img" '
        'aria-label="Training loss of each run; the table below gives the values. Arrow keys move a cursor."></svg>'
        '<div class="tip" role="status" hidden></div></div></div>'
        + '<details><summary>The curves as a table</summary><div class="scroll" tabindex="0"><table class="stack">'
        "<thead><tr>"
        + f'<th scope="col">share of the run</th>{head}</tr></thead><tbody>{body}</tbody></table></div></details>'
    )


# ---------------------------------------------------------------- bits per byte


def bits(runs: Sequence[RunFiles]) -> str:
    rows = [(name, quality(run), i) for i, run, name in named(runs)]
    known = [(found[0], found[1], name, i) for name, found, i in rows if found is not None]
    missing = "".join(
        f'<p class="note"><span class="name {k(i)}">{escape(name)}</span> has no bits per byte: {why}.</p>'
        for i, run, name in named(runs)
        if (why := no_bits(run)) is not None and not aligned(run)
    )
    if not known:
        return missing
    simple = sorted((value, name) for name, value in baselines([(n, run.summary) for _, run, n in named(runs)]).items())
    top = max([v for v, *_ in known] + [v for v, _ in simple]) or 1.0

    def bar(name: str, value: float, css: str) -> str:
        return (
            f'<div class="what {"name " + css if css != "plain" else ""}">{escape(name)}</div>'
            f'<div class="bar {css}" style="--w:{value / top:.4f}">{value:.3f}</div>'
        )

    out = [
        '<p class="note">Bits that a model needs for a byte of text that it was not trained on; lower is better.</p>'
    ]
    whole = [bar(name, value, k(i)) for value, all_of_it, name, i in sorted(known) if all_of_it]
    hidden = [bar(name, value, k(i)) for value, all_of_it, name, i in sorted(known) if not all_of_it]
    plain = [bar(name, value, "plain") for value, name in simple]
    if whole or plain:
        hatched = '<p class="note">Hatched: baselines on the same text.</p>' if plain else ""
        out.append(f'<h3>Of the whole text</h3>{hatched}<div class="bars">{"".join(whole + plain)}</div>')
    if hidden:
        out.append(
            '<h3 class="more">Of hidden parts</h3><p class="note">These models predict hidden parts from the text on '
            "both sides. This is another measure, not comparable with the one above.</p>"
            f'<div class="bars">{"".join(hidden)}</div>'
        )
    return "".join([*out, missing])


# ---------------------------------------------------------------- speed and details


def speed(runs: Sequence[RunFiles]) -> str:
    titles, rows = ("parameters", "tokens", "steps", "time", "tokens/s", "FLOPs", "of peak"), ""
    for i, run, name in named(runs):
        share = first_of(run, "peak_share")
        cells = [
            short(first_of(run, "parameters")),
            short(tokens_of(run)),
            f"{len(run.steps):,}" if run.steps else "-",
            duration(seconds_of(run)),
            short(speed_of(run)),
            short(first_of(run, "flops")),
            f"{share:.0%}" if share is not None else "-",
        ]
        tds = "".join(
            f'<td class="n" data-label="{title}">{escape(c)}</td>' for title, c in zip(titles, cells, strict=True)
        )
        rows += f'<tr><th scope="row" class="name {k(i)}">{escape(name)}</th>{tds}</tr>'
    head = "".join(f'<th class="n" scope="col">{t}</th>' for t in titles)
    return (
        f'<div class="scroll" tabindex="0"><table class="stack"><thead><tr><th scope="col">run</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def details(runs: Sequence[RunFiles]) -> str:
    out = []
    for i, run, name in named(runs):
        command = run.info.get("command")
        line = " ".join(map(str, command)) if isinstance(command, list) else command
        versions = run.info.get("versions")
        if isinstance(versions, dict):
            versions = ", ".join(f"{n} {v}" for n, v in versions.items())
        facts = [
            ("directory", str(run.path)),
            ("seed", run.plan.get("seed")),
            ("text", data_text(run)),
            ("device", run.info.get("device")),
            ("made", run.info.get("created")),
            ("versions", versions),
        ]
        rows = "".join(
            f'<tr><th scope="row">{escape(a)}</th><td class="mono any">{escape(shown(b))}</td></tr>'
            for a, b in facts
            if b is not None
        )
        plan = "\n".join(f"{path}: {value}" for path, value in flat(run.plan))
        ran = f"<pre>{escape(str(line))}</pre>" if line else ""
        out.append(
            f'<details class="{k(i)}"><summary>{escape(name)}</summary>{ran}<table><tbody>{rows}</tbody></table>'
            f"<h3 style='margin-top:1em'>Its plan</h3><pre>{escape(plan)}</pre></details>"
        )
    return "".join(out)


def data_text(run: RunFiles) -> str | None:
    """The size and fingerprint of a run's text."""
    data = run.info.get("data")
    if not isinstance(data, dict):
        return None
    amounts = [f"{short(number(data[key]))} {key}" for key in ("bytes", "tokens", "documents") if number(data.get(key))]
    return ", ".join([*amounts, f"fingerprint {str(data.get('fingerprint', ''))[:16]}"])


def shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)


def flat(data: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Every (path, leaf) of plain data; the `kind` of a table has the path of the table."""
    for key, value in data.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            if "kind" in value:
                yield path, value["kind"]
            yield from flat({a: b for a, b in value.items() if a != "kind"}, path + ".")
        elif key != "kind":
            yield path, value
