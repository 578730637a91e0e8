"""The report as HTML: sections over runs, drawn with inline CSS, SVG and one short script."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

import stemma
from stemma import families, spec
from stemma.errors import UsageError
from stemma.families.declare import Family
from stemma.families.goals import Objective
from stemma.nn.parts import Arch
from stemma.report.html import asset, change_row, document
from stemma.report.read import Run
from stemma.report.words import children, ranked

POINTS = 400  # points of a curve, at most
DASHES = ("", "9 5", "3 4", "12 4 3 4", "6 3", "2 6")
NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six")


def render(runs: Sequence[Run], title: str | None = None) -> str:
    """The whole page. Raises UsageError without runs."""
    if not runs:
        raise UsageError("a report needs at least one run")
    sections = [
        ("results", "Results", results(runs)),
        ("tree", "The family", family_tree(runs)),
        ("loss", "Learning", curves(runs)),
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
<p class="kicker">Stemma report</p>
<h1>{escape(title)}</h1>
<p class="lede">{lede(runs)}</p>
<nav aria-label="Sections">{nav}</nav>
</header>
<main>{main}</main>
<footer>Written by Stemma {escape(stemma.__version__)} on {now}. This file is complete: it loads nothing.</footer>
<script type="application/json" id="curves">{curve_data(runs)}</script>
<script>{asset("chart.js")}</script>"""
    return document(f"{title} - Stemma", body, asset("style.css"))


# ---------------------------------------------------------------- small helpers


def k(i: int) -> str:
    """The colour class of run `i`."""
    return f"k{i % 6}"


def labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run, told apart by directory, then by number, where names repeat."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{n} ({run.path.name})" if names.count(n) > 1 else n for n, run in zip(names, runs, strict=True)]
    return [f"{n} #{i + 1}" if names.count(n) > 1 else n for i, n in enumerate(names)]


def number(value: Any) -> float | None:
    """`value` if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def short(n: float | None, unit: str = "") -> str:
    if n is None:
        return "-"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= size:
            return f"{n / size:.3g}{letter}{unit}"
    return f"{n:.3g}{unit}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def owner(run: Run) -> Family | None:
    """The family of a run, if the tree here knows it."""
    try:
        return families.family(run.name)
    except UsageError:
        return None


def last(run: Run, key: str) -> float | None:
    """The last value of a metric."""
    return next((v for row in reversed(run.steps) if (v := number(row.get(key))) is not None), None)


def first_of(run: Run, *keys: str) -> float | None:
    """The first of these numbers that the summary has, or else the run itself."""
    for source in (run.summary, run.info):
        for key in keys:
            if (value := number(source.get(key))) is not None:
                return value
    return None


def quality(run: Run) -> tuple[float, bool] | None:
    """Bits per byte of held-out text, and whether they are of all of it (or of the hidden parts alone)."""
    val = run.summary.get("val")
    for source in (val if isinstance(val, dict) else {}, run.summary):
        for key, whole in (("bits_per_byte", True), ("bits_per_target_byte", False)):
            if (value := number(source.get(key))) is not None:
                return value, whole
    return None


def _told(run: Run) -> float | None:
    """The share of tokens of which a detector told rightly whether they were replaced."""
    val = run.summary.get("val")
    return number(val.get("replaced_right")) if isinstance(val, dict) else None


def seconds_of(run: Run) -> float | None:
    found = first_of(run, "seconds", "train_seconds")
    return found if found is not None else last(run, "seconds")


def tokens_of(run: Run) -> float | None:
    found = first_of(run, "tokens")
    return found if found is not None else last(run, "tokens")


def speed_of(run: Run) -> float | None:
    found = first_of(run, "tokens_per_second")
    tokens, seconds = tokens_of(run), seconds_of(run)
    return found if found is not None else tokens / seconds if tokens and seconds else None


def kind_text(run: Run) -> str:
    objective = run.plan.get("objective")
    kind = objective.get("kind") if isinstance(objective, dict) else None
    says = {
        "CLM": "next token",
        "MLM": "masked tokens",
        "Spans": "span corruption",
        "RTD": "replaced tokens",
        "Translation": "translation",
    }
    return ", ".join(x for x in (run.structure, says.get(str(kind), kind)) if x)


# ---------------------------------------------------------------- head and cards


def default_title(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return f"{runs[0].name}, trained"
    count = NUMBERS[len(runs)] if len(runs) < len(NUMBERS) else str(len(runs))
    relatives = all(owner(run) is not None for run in runs) and len({run.name for run in runs}) > 1
    same = len({tokens_of(run) for run in runs}) == 1 and tokens_of(runs[0])
    return f"{count} {'relatives' if relatives else 'runs'}{', one budget' if same else ''}"


def lede(runs: Sequence[Run]) -> str:
    names = [f'<span class="name {k(i)}">{escape(n)}</span>' for i, n in enumerate(labels(runs))]
    joined = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    data = {str(run.plan["data"]) for run in runs if run.plan.get("data")}
    on = f" on <code>{escape(data.pop())}</code>" if len(data) == 1 else ""
    tokens = {tokens_of(run) for run in runs}
    budget = next(iter(tokens))
    each = f", {short(budget)} tokens{' each' if len(runs) > 1 else ''}" if len(tokens) == 1 and budget else ""
    total = sum(seconds_of(run) or 0 for run in runs)
    time = f", in {duration(total)}{' together' if len(runs) > 1 else ''}" if total else ""
    return f"{joined}, trained from nothing{on}{each}{time}."


def results(runs: Sequence[Run]) -> str:
    cards = []
    for i, (run, name) in enumerate(zip(runs, labels(runs), strict=True)):
        found = quality(run)
        loss = last(run, "loss")
        if found is not None:
            big = f"{found[0]:.3f} <small>bits per byte{'' if found[1] else ' of hidden text'}</small>"
        elif (right := _told(run)) is not None:
            big = f"{right:.1%} <small>of hidden text's tokens told replaced or not</small>"
        elif loss is not None:
            big = f"{loss:.3f} <small>last loss, nats a target</small>"
        else:
            big = "<small>no step was recorded</small>"
        rows = [
            ("parameters", short(first_of(run, "parameters"))),
            ("tokens", short(tokens_of(run))),
            ("time", duration(seconds_of(run))),
            ("speed", short(speed_of(run), " tokens/s")),
        ]
        if loss is not None:
            rows.insert(0, ("loss, first to last", f"{first_loss(run):.2f} to {smooth_last(run):.2f}"))
        dl = "".join(f"<dt>{a}</dt><dd>{escape(b)}</dd>" for a, b in rows if b != "-")
        warn = "".join(f'<p class="note warn">{escape(w)}</p>' for w in run.warnings)
        cards.append(
            f'<article class="card {k(i)}"><h3>{escape(name)} <span class="kind">{escape(kind_text(run))}</span></h3>'
            f'<p class="big">{big}</p><dl>{dl}</dl>{warn}</article>'
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def first_loss(run: Run) -> float:
    return next((v for row in run.steps if (v := number(row.get("loss"))) is not None), float("nan"))


def smooth_last(run: Run) -> float:
    values = [v for row in run.steps if (v := number(row.get("loss"))) is not None]
    return smoothed(values)[-1] if values else float("nan")


# ---------------------------------------------------------------- tree


def family_tree(runs: Sequence[Run]) -> str:
    trained: dict[str, int] = {}
    for i, run in enumerate(runs):
        family = owner(run)
        if family is not None:
            trained.setdefault(family.name, i)
    if not trained:
        return ""
    ancestors = {f.name for name in trained for f in families.family(name).lineage}
    panels = [changes_panel(families.family(name), i, runs[i]) for name, i in trained.items()]
    return (
        '<p class="note">Every family is a change of its parent. Those trained here stand in colour, each at the year '
        "of its paper; the grey ones are their relatives.</p>"
        + diagram(trained, ancestors)
        + f'<ul class="tree" aria-label="The family tree">{"".join(branch(f, trained) for f in children(None))}</ul>'
        + "<h3>What each changed of its parent</h3>"
        + f'<div class="two">{"".join(panels)}</div>'
    )


def branch(family: Family, trained: dict[str, int]) -> str:
    """A family and what descends from it, as nested list items."""
    i = trained.get(family.name)
    name = f'<span class="on {k(i)}">{escape(family.name)}</span>' if i is not None else escape(family.name)
    inner = "".join(branch(child, trained) for child in children(family.name))
    return f"<li>{name} <small>{family.about.year}</small>{f'<ul>{inner}</ul>' if inner else ''}</li>"


def diagram(trained: dict[str, int], ancestors: set[str]) -> str:
    """The tree over the years, as SVG: a row a family, children under their parents."""
    order: list[Family] = []

    def walk(family: Family) -> None:
        order.append(family)
        for child in children(family.name):
            walk(child)

    for root in children(None):
        walk(root)
    years = [f.about.year for f in order]
    start, end = min(years), max(years)
    width, row, left, right, top = 1100, 34, 20, 130, 24
    step = (width - left - right) / max(end - start, 1)
    xs: dict[str, float] = {}
    ys: dict[str, float] = {}
    for n, f in enumerate(order):
        x = left + (f.about.year - start) * step
        # A child of its parent's year stands a little to the right of it.
        if f.parent is not None and f.parent.name in xs:
            x = max(x, xs[f.parent.name] + min(46, step * 0.5))
        xs[f.name], ys[f.name] = x, top + 10 + n * row
    height = top + 10 + len(order) * row + 14
    out = [
        f'<svg class="diagram" viewBox="0 0 {width} {height}" role="img" aria-labelledby="tree-title">'
        f'<title id="tree-title">Family tree over the years: {escape(described(order, trained))}</title>'
    ]
    for year in sorted(set(years)):
        x = left + (year - start) * step
        out.append(f'<line class="grid" x1="{x:.0f}" x2="{x:.0f}" y1="{top}" y2="{height - 20}"/>')
        out.append(f'<text class="year" x="{x:.0f}" y="{height - 3}" text-anchor="middle">{year}</text>')
    for f in order:
        if f.parent is None:
            continue
        px, py, x, y = xs[f.parent.name], ys[f.parent.name], xs[f.name], ys[f.name]
        bend = min(14.0, (x - px) / 2)
        on = " on" if f.name in ancestors else ""
        dash = ' stroke-dasharray="5 5"' if f.edge == "trained" else ""
        out.append(
            f'<path class="edge{on}"{dash} d="M{px:.1f} {py:.1f}V{y - bend:.1f}'
            f'Q{px:.1f} {y:.1f} {px + bend:.1f} {y:.1f}H{x:.1f}"/>'
        )
    for f in order:
        i = trained.get(f.name)
        css = f"on {k(i)}" if i is not None else "line" if f.name in ancestors else ""
        x, y = xs[f.name], ys[f.name]
        ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="10"/>' if i is not None else ""
        out.append(
            f'<g class="{css}">{ring}<circle cx="{x:.1f}" cy="{y:.1f}" r="{7 if i is not None else 5}"/>'
            f'<text x="{x + 15:.1f}" y="{y + 5:.1f}">{escape(f.name)}</text></g>'
        )
    return "".join([*out, "</svg>"])


def described(order: Iterable[Family], trained: dict[str, int]) -> str:
    parts = [f"{f.name} ({f.about.year}) from {f.parent.name}" for f in order if f.parent is not None]
    return ", ".join(parts) + "; trained here: " + ", ".join(trained)


def run_changes(family: Family, run: Run) -> list[spec.Change]:
    """Where the run's own network or objective is not its family's, sizes and windows apart."""
    changes: list[spec.Change] = []
    for part, kind in (("arch", Arch), ("objective", Objective)):
        try:
            trained = spec.coerce(kind, run.plan.get(part), part)
        except UsageError:
            continue  # written by another version: nothing is said of it
        changes += spec.diff(getattr(family, part), trained, part + ".")
    return [c for c in changes if not c.path.startswith("arch.mask")]


def changes_panel(family: Family, i: int, run: Run) -> str:
    line = " &larr; ".join(escape(f.name) for f in family.lineage)
    parent = family.parent
    if parent is None:
        body = "<p>It is the root.</p>"
    else:
        rows = [change_row(p, spec.get(parent, p), spec.get(family, p)) for p in ranked(family.changes)]
        head, rest = rows[:9], rows[9:]
        body = f'<ul class="changes">{"".join(head)}</ul>'
        if rest:
            body += f"<details><summary>{len(rest)} more</summary><ul class='changes'>{''.join(rest)}</ul></details>"
    if own := [change_row(c.path, c.old, c.new) for c in run_changes(family, run)]:
        body += f'<p class="note">In this run, beside the size:</p><ul class="changes">{"".join(own)}</ul>'
    return f'<article class="panel {k(i)}"><h3>{escape(family.name)}</h3><p class="note">{line}</p>{body}</article>'


# ---------------------------------------------------------------- curves


def smoothed(values: Sequence[float]) -> list[float]:
    """A running mean over about a fiftieth of the run, with weights that fall off, unbiased at the start."""
    keep = 1 - 1 / max(2.0, len(values) / 50)
    total = weight = 0.0
    out = []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(total / weight)
    return out


def points(run: Run) -> list[list[float]]:
    """[tokens, seconds, loss, smoothed loss], thinned by taking means of neighbours."""
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


def curve_data(runs: Sequence[Run]) -> str:
    data = [
        {"name": name, "k": i % 6, "dash": DASHES[i % len(DASHES)], "points": pts}
        for i, (run, name) in enumerate(zip(runs, labels(runs), strict=True))
        if len(pts := points(run)) > 1
    ]
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def curves(runs: Sequence[Run]) -> str:
    named = enumerate(zip(runs, labels(runs), strict=True))
    drawn = [(i, run, name) for i, (run, name) in named if len(points(run)) > 1]
    if not drawn:
        return ""
    borders = ("solid", "dashed", "dotted", "dashed", "dashed", "dotted")
    legend = "".join(
        f'<li class="{k(i)}"><i style="--dash:{borders[i % 6]}"></i>{escape(name)}</li>' for i, _, name in drawn
    )
    shares = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    head = "".join(f'<th class="n" scope="col">{s:.0%}</th>' for s in shares)
    body = ""
    for i, run, name in drawn:
        pts = points(run)
        cells = "".join(f'<td class="n">{pts[round(s * (len(pts) - 1))][3]:.3f}</td>' for s in shares)
        body += f'<tr><th scope="row" class="name {k(i)}">{escape(name)}</th>{cells}</tr>'
    several = len({json.dumps(run.plan.get("objective"), sort_keys=True) for _, run, _ in drawn}) > 1
    note = (
        '<p class="note">These models predict different things (any masked word, the next one, a removed span), so '
        "compare the shapes of the curves, not their heights. Faint: each step; bold: a running mean.</p>"
        if several
        else '<p class="note">Faint: each step; bold: a running mean.</p>'
    )

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
        + '<details><summary>The curves as a table</summary><div class="scroll" tabindex="0"><table><thead><tr>'
        + f'<th scope="col">share of the run</th>{head}</tr></thead><tbody>{body}</tbody></table></div></details>'
    )


# ---------------------------------------------------------------- bits per byte


def baselines(runs: Sequence[Run]) -> dict[str, float]:
    """The simple models that summaries compare with: name -> bits per byte."""
    found: dict[str, float] = {}
    for run in runs:
        given = run.summary.get("baselines")
        for name, value in given.items() if isinstance(given, dict) else ():
            if isinstance(value, dict):
                value = value.get("bits_per_byte")
            if (n := number(value)) is not None:
                found.setdefault(str(name).removesuffix("_bits_per_byte").replace("_", " "), n)
    return found


def bits(runs: Sequence[Run]) -> str:
    rows = [(name, quality(run), i) for i, (run, name) in enumerate(zip(runs, labels(runs), strict=True))]
    known = [(found[0], found[1], name, i) for name, found, i in rows if found is not None]
    if not known:
        return ""
    simple = sorted((value, name) for name, value in baselines(runs).items())
    top = max([v for v, *_ in known] + [v for v, _ in simple]) or 1.0

    def bar(name: str, value: float, css: str) -> str:
        return (
            f'<div class="what {"name " + css if css != "plain" else ""}">{escape(name)}</div>'
            f'<div class="bar {css}" style="--w:{value / top:.4f}">{value:.3f}</div>'
        )

    out = [
        '<p class="note">How many bits a model needs for a byte of text that it was not trained on; less is better.</p>'
    ]
    whole = [bar(name, value, k(i)) for value, all_of_it, name, i in sorted(known) if all_of_it]
    hidden = [bar(name, value, k(i)) for value, all_of_it, name, i in sorted(known) if not all_of_it]
    plain = [bar(name, value, "plain") for value, name in simple]
    if whole or plain:
        hatched = '<p class="note">Hatched: what simple means need for the same text.</p>' if plain else ""
        out.append(f'<h3>Of the whole text</h3>{hatched}<div class="bars">{"".join(whole + plain)}</div>')
    if hidden:
        out.append(
            '<h3 class="more">Of hidden parts</h3><p class="note">These models see the text on both sides of what they '
            "are asked for, and answer for nothing else: another measure, not to be compared with the one above.</p>"
            f'<div class="bars">{"".join(hidden)}</div>'
        )
    return "".join(out)


# ---------------------------------------------------------------- samples


def samples(runs: Sequence[Run]) -> str:
    panels = []
    for i, (run, name) in enumerate(zip(runs, labels(runs), strict=True)):
        parts = [
            *(fill_sample(s) for s in listed(run, "fill")),
            *(continue_sample(s) for s in listed(run, "continue")),
            *(repair_sample(s) for s in listed(run, "repair")),
        ]
        if parts:
            what = {"fill": "fills in masked words", "continue": "continues", "repair": "repairs removed spans"}
            does = next(text for key, text in what.items() if listed(run, key))
            panels.append(f'<article class="panel {k(i)}"><h3>{escape(name)} {does}</h3>{"".join(parts)}</article>')
    return f'<div class="two">{"".join(panels)}</div>' if panels else ""


def listed(run: Run, key: str) -> list[dict[str, Any]]:
    found = run.samples.get(key)
    return [s for s in found if isinstance(s, dict)] if isinstance(found, list) else []


def fill_sample(sample: dict[str, Any]) -> str:
    """A text with gaps, and for each gap the guesses with their probabilities."""
    pieces = sample.get("parts") or []
    truth = [str(t) for t in sample.get("truth") or []]
    guesses = sample.get("guesses") or []
    text, gap = "", 0
    for piece in pieces:
        if piece is None:
            best = guesses[gap][0]["text"] if gap < len(guesses) and guesses[gap] else "?"
            text += f'<span class="gap">{escape(str(best).strip())}</span>'
            gap += 1
        else:
            text += escape(str(piece))
    out = f"<p>{text}</p>"
    for n, rows in enumerate(guesses):
        right = truth[n].strip().lower() if n < len(truth) else None
        items = ""
        for guess in rows:
            said, p = str(guess.get("text", "")).strip(), number(guess.get("p")) or 0.0
            hit = ' class="hit"' if right is not None and said.lower() == right else ""
            items += (
                f'<li{hit}><span>{escape(said) or "&nbsp;"}</span><span class="meter" aria-hidden="true">'
                f'<i style="--w:{min(p, 1):.4f}"></i></span><span class="n">{p:.1%}</span></li>'
            )
        out += f'<ol class="guesses">{items}</ol>'
    if truth:
        out += f'<p class="truth">The text has: {escape(", ".join(truth))}</p>'
    return f'<div class="sample">{out}</div>'


def continue_sample(sample: dict[str, Any]) -> str:
    prompt, text = str(sample.get("prompt", "")), str(sample.get("text", ""))
    return f'<div class="sample"><p>{escape(prompt)}<span class="said">{escape(text)}</span></p></div>'


def repair_sample(sample: dict[str, Any]) -> str:
    spans = [str(s) for s in sample.get("spans") or []]
    text, gap = "", 0
    for piece in sample.get("parts") or []:
        if piece is None:
            said = spans[gap].strip() if gap < len(spans) else ""
            text += f'<span class="gap">{escape(said) or "&hellip;"}</span>'
            gap += 1
        else:
            text += escape(str(piece))
    truth = [str(t) for t in sample.get("truth") or []]
    end = f'<p class="truth">The text has: {escape(" / ".join(truth))}</p>' if truth else ""
    return f'<div class="sample"><p>{text}</p>{end}</div>'


# ---------------------------------------------------------------- speed and details


def speed(runs: Sequence[Run]) -> str:
    rows = ""
    for i, (run, name) in enumerate(zip(runs, labels(runs), strict=True)):
        share = first_of(run, "peak_share")
        cells = [
            short(first_of(run, "parameters")),
            short(tokens_of(run)),
            f"{len(run.steps):,}" if run.steps else "-",
            duration(seconds_of(run)),
            short(speed_of(run)),
            f"{share:.0%}" if share is not None else "-",
        ]
        tds = "".join(f'<td class="n">{escape(c)}</td>' for c in cells)
        rows += f'<tr><th scope="row" class="name {k(i)}">{escape(name)}</th>{tds}</tr>'
    titles = ("parameters", "tokens", "steps", "time", "tokens/s", "of peak")
    head = "".join(f'<th class="n" scope="col">{t}</th>' for t in titles)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr><th scope="col">run</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def details(runs: Sequence[Run]) -> str:
    out = []
    for i, (run, name) in enumerate(zip(runs, labels(runs), strict=True)):
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
        said = f"<pre>{escape(str(line))}</pre>" if line else ""
        out.append(
            f'<details class="{k(i)}"><summary>{escape(name)}</summary>{said}<table><tbody>{rows}</tbody></table>'
            f"<h3 style='margin-top:1em'>Its plan</h3><pre>{escape(plan)}</pre></details>"
        )
    return "".join(out)


def data_text(run: Run) -> str | None:
    """Amount and fingerprint of a run's text."""
    data = run.info.get("data")
    if not isinstance(data, dict):
        return None
    amounts = [f"{short(number(data[key]))} {key}" for key in ("bytes", "tokens", "documents") if number(data.get(key))]
    return ", ".join([*amounts, f"fingerprint {str(data.get('fingerprint', ''))[:16]}"])


def shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)


def flat(data: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Every (path, leaf) of plain data; a table's `kind` stands at the table's own path."""
    for key, value in data.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            if "kind" in value:
                yield path, value["kind"]
            yield from flat({a: b for a, b in value.items() if a != "kind"}, path + ".")
        elif key != "kind":
            yield path, value
