"""The report: one file, escaped, complete, from whatever a run directory holds."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import grid
from stemma import families, report, spec
from stemma.errors import DataError, UsageError
from stemma.report import page
from stemma.report.facts import baselines
from stemma.train import pretrain
from test_cli import Call, call  # noqa: F401

EVIL = "</script><script>alert(1)</script>"
VOID = {"meta", "link", "input", "line", "circle", "path", "br"}


def make(folder: Path, name: str, *, steps: int = 60, samples: Any = None, summary: Any = None) -> Path:
    """A run directory as training leaves it."""
    design = families.design(name)
    parts = ("arch", "dims", "objective", "text", "recipe")
    plan = {"name": name, "seed": 1, "data": "builtin:bible"} | {p: spec.to_dict(getattr(design, p)) for p in parts}
    folder.mkdir(parents=True)
    info = {
        "plan": plan,
        "command": ["stemma", "pretrain", EVIL],
        "versions": {"torch": "2.13"},
        "parameters": 1_234_567,
    }
    (folder / "run.json").write_text(json.dumps(info))
    rows = [{"step": s, "loss": 8 - s / 20, "tokens": s * 1024, "seconds": s / 10} for s in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    if samples is not None:
        (folder / "samples.json").write_text(json.dumps(samples))
    return folder


class Checker(HTMLParser):
    """Collects what a page loads, and checks that its tags nest."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loads += [v for k, v in given.items() if k in ("src", "href", "xlink:href", "action") and v]
        self.ids += [v for k, v in given.items() if k == "id" and v]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop() == tag, f"</{tag}> closes nothing"


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    assert checker.stack == []
    return checker


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    gap = [f"a {EVIL} ", None, "."]
    fills = {
        "fill": [{"parts": gap, "truth": ["x"], "guesses": [[{"text": EVIL, "p": 0.5}, {"text": "x", "p": 0.25}]]}]
    }
    says = {"continue": [{"prompt": "In the beginning", "text": f" was {EVIL}"}]}
    spans = {"repair": [{"parts": gap, "spans": ["the earth"], "truth": ["heavens"]}]}
    base = {"unigram_bits_per_byte": 3.2, "xz_bits_per_byte": 2.3}
    made = []
    for name, key, bits, said in (
        ("roberta-base", "bits_per_target_byte", 1.6, fills),
        ("llama-7b", "bits_per_byte", 2.05, says),
        ("t5-small", "bits_per_target_byte", 1.9, spans),
    ):
        summary = {"val": {key: bits, "loss": 2.0}, "baselines": base, "tokens_per_second": 2e4, "peak_share": 0.3}
        made.append(make(tmp_path / name, name, samples=said, summary=summary))
    return made


def test_the_page_is_whole_and_loads_nothing(runs: list[Path], tmp_path: Path) -> None:
    path = report.write(runs, tmp_path / "deep" / "report.html")
    text = path.read_text("utf-8")
    found = checked(text)
    assert all(link.startswith(("#", "data:,")) for link in found.loads)
    assert len(found.ids) == len(set(found.ids))
    assert set(re.findall(r'href="#(\w+)"', text)) <= set(found.ids)
    assert "@import" not in text
    assert "url(" not in text
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_text_of_users_is_escaped(runs: list[Path], tmp_path: Path) -> None:
    text = report.write(runs, tmp_path / "r.html", title=EVIL).read_text("utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_it_says_what_the_runs_say(runs: list[Path], tmp_path: Path) -> None:
    text = report.write(runs, tmp_path / "r.html").read_text("utf-8")
    plain = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))
    for words in ("2.050", "1.600", "unigram", "xz", "the earth", "GatedMLP", "Three relatives, one budget", "1.23M"):
        assert words in plain
    tree = text.split('id="tree"')[1].split("<section")[0]
    assert all(name in tree for name in ("roberta", "bert", "llama", "gpt3", "t5", "transformer"))
    assert not any(name in tree for name in ("electra", "mistral", "umt5"))  # no branch of these runs


def test_a_run_has_one_colour_everywhere(runs: list[Path], tmp_path: Path) -> None:
    """In the list of families as in the diagram: the colour of its place among the runs."""
    text = report.write(runs, tmp_path / "r.html").read_text("utf-8")
    listed = re.findall(r'<span class="on (k\d)">([^<]+)</span>', text[text.index('aria-label="The family tree"') :])
    names = [json.loads((run / "run.json").read_text())["plan"]["name"] for run in runs]
    expected = {families.family(name).name: f"k{i}" for i, name in enumerate(names)}
    assert len(set(expected.values())) > 1 and {name: colour for colour, name in listed} == expected


def test_where_the_weights_came_from(runs: list[Path], tmp_path: Path) -> None:
    def lede(*starts: str) -> str:
        for run, start in zip(runs, starts, strict=False):
            info = json.loads((run / "run.json").read_text())
            info["plan"]["train"] = {"start": start}
            (run / "run.json").write_text(json.dumps(info))
        text = report.write(runs[: len(starts)], tmp_path / "r.html").read_text("utf-8")
        assert text.count("<dt>weights from</dt>") == sum(map(bool, starts))
        return re.search(r'<p class="lede">(.*?)</p>', text, re.S)[1]  # type: ignore[index]

    assert "trained from nothing on" in lede("") and "trained from nothing on" in lede("", "")
    assert "trained from the weights of <code>runs/&lt;a&gt;/model</code> on" in lede("runs/<a>/model")
    assert "nothing" not in lede("runs/a", "runs/a") and "trained from given weights on" in lede("runs/a", "runs/b")
    assert "trained from nothing or from given weights on" in lede("runs/a", "")


def test_curves_carry_every_run(runs: list[Path], tmp_path: Path) -> None:
    text = report.write(runs, tmp_path / "r.html").read_text("utf-8")
    data = json.loads(re.search(r'id="curves">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    assert [row["name"] for row in data] == ["roberta-base", "llama-7b", "t5-small"]
    assert all(len(row["points"]) == 60 for row in data)


def test_a_baseline_belongs_to_its_run(tmp_path: Path) -> None:
    def run(name: str, key: str, unigram: float) -> Path:
        base = {"unigram_bits_per_byte": unigram, "xz_bits_per_byte": 2.3}
        return make(tmp_path / name, name, summary={"val": {key: 2.0}, "baselines": base})

    bert, llama = run("bert-base", "bits_per_target_byte", 2.515), run("llama-7b", "bits_per_byte", 2.845)
    for runs in ([bert, llama], [llama, bert]):  # bits per hidden byte have no such baseline
        assert baselines([(r.name, report.read(r).summary) for r in runs]) == {"unigram": 2.845, "xz": 2.3}
        text = report.write(runs, tmp_path / "r.html").read_text("utf-8")
        assert "2.845" in text and "2.515" not in text.split('id="bits"')[1].split("<section")[0]
    gpt = run("gpt2", "bits_per_byte", 2.9)
    bars = report.write([gpt, bert, llama], tmp_path / "r.html").read_text("utf-8").split('id="bits"')[1]
    assert "unigram, gpt2</div>" in bars and "unigram, llama-7b</div>" in bars and ">xz</div>" in bars


def test_long_runs_are_thinned(tmp_path: Path) -> None:
    run = report.read(make(tmp_path / "a", "gpt2", steps=5000))
    assert 100 < len(page.points(run)) <= page.POINTS


def test_smoothing_is_unbiased() -> None:
    assert page.smoothed([3.0] * 200) == pytest.approx([3.0] * 200)
    assert page.smoothed([]) == []


def test_a_bare_run_is_enough(tmp_path: Path) -> None:
    run = tmp_path / "bare"
    run.mkdir()
    (run / "run.json").write_text('{"plan": {"name": "one-of-a-kind"}}')
    text = report.write([run], tmp_path / "r.html").read_text("utf-8")
    checked(text)
    assert "one-of-a-kind" in text


def test_a_family_of_ones_own_and_the_same_twice(tmp_path: Path) -> None:
    pair = [make(tmp_path / "a", "gpt2"), make(tmp_path / "b", "gpt2")]
    text = report.write(pair, tmp_path / "r.html").read_text("utf-8")
    assert "gpt2 (a)" in text
    assert "gpt2 (b)" in text


def test_a_cut_off_line_is_left_out_and_said(tmp_path: Path) -> None:
    run = make(tmp_path / "a", "gpt2", steps=3)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    assert len(report.read(run).steps) == 3
    assert "cut off" in report.write([run], tmp_path / "r.html").read_text("utf-8")


def test_not_a_number_does_no_harm(tmp_path: Path) -> None:
    run = make(tmp_path / "a", "gpt2", steps=3, summary={"val": {"bits_per_byte": float("nan")}})
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "loss": NaN}\n{"step": 5, "loss": 1}\n')
    checked(report.write([run], tmp_path / "r.html").read_text("utf-8"))


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such directory"):
        report.read(tmp_path / "none")
    with pytest.raises(UsageError, match=r"no run\.json"):
        report.read(tmp_path)
    with pytest.raises(UsageError, match="at least one run"):
        report.write([], tmp_path / "r.html")
    run = make(tmp_path / "a", "gpt2")
    (run / "metrics.jsonl").write_text("{oops\n{}\n")
    with pytest.raises(DataError, match="line 1"):
        report.read(run)
    (run / "run.json").write_text("[]")
    with pytest.raises(DataError, match="an object was expected"):
        report.read(run)


def section(text: str, key: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text.split(f'<section id="{key}"')[1].split("<section")[0]))


@pytest.mark.parametrize("share", [0.146, None])
def test_a_detector_is_held_against_the_commoner_answer(share: float | None, tmp_path: Path) -> None:
    val = {"loss": 0.4, "replaced_right": 0.855} | ({} if share is None else {"replaced_share": share})
    runs = [make(tmp_path / "e", "electra-small", summary={"val": val, "flops": 4.2e15})]
    runs.append(make(tmp_path / "g", "gpt2"))
    text = report.write(runs, tmp_path / "r.html").read_text("utf-8")
    big = re.findall(r'<p class="big">([^<]*)<', text)
    assert big[0].strip() == ("+0.1" if share else "")
    card = section(text, "results")
    assert "85.5% of the tokens rightly called replaced or original" in card and "4.2P FLOPs" in card
    assert ("85.4% if every token got the same answer" if share else "was not recorded") in card
    bits = section(text, "bits")
    assert "electra-small has no bits per byte: it says of each token whether it was replaced" in bits
    assert "gpt2 has no bits per byte: it has not finished" in bits


def test_held_out_losses_are_drawn(tmp_path: Path) -> None:
    """What training minimises, of each part that was measured."""
    run = make(
        tmp_path / "b", "bert-base", summary={"val": {"loss": 2.0, "loss_pair": 0.5}, "tokens": 7000, "seconds": 9}
    )
    rows = [{"step": 1, "loss": 8.0, "tokens": 5, "seconds": 1.0}]
    rows.append({"step": 2, "loss": 7.0, "tokens": 10, "seconds": 2.0, "val_loss": 3.0, "val_loss_pair": 0.7})
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    detector = make(tmp_path / "e", "electra-small", summary={"val": {"loss": 0.5, "loss_token": 6.0}, "tokens": 9})
    text = report.write([run, detector], tmp_path / "r.html").read_text("utf-8")
    data = json.loads(re.search(r'id="curves">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    assert data[0]["held"] == [[10, 2.0, 3.7], [7000, 9, 2.5]]
    assert data[1]["held"] == [[9, 6.0, 50 * 0.5 + 6.0]]
    assert "rings: held-out text." in section(text, "loss")


def test_names_fit_the_picture_and_the_theme_can_be_chosen(tmp_path: Path) -> None:
    text = report.write([make(tmp_path / "q", "qwen3-moe")], tmp_path / "r.html").read_text("utf-8")
    width = int(re.search(r'viewBox="0 0 (\d+)', text)[1])  # type: ignore[index]
    found = re.search(r'<text x="([\d.]+)" y="[\d.]+">qwen3-moe</text>', text)
    assert found and width - float(found[1]) > 12 * len("qwen3-moe")  # 12: a wide letter of 17 px
    assert text.count('id="theme"') == 1 and "dataset.theme" in text


@pytest.mark.filterwarnings("ignore:the text gives:UserWarning")
def test_the_command_asks_models_for_samples(tmp_path: Path, call: Call) -> None:  # noqa: F811
    data = grid.text(tmp_path)
    runs = {"llama": "continue", "bert": "fill", "electra": None, "t5": "repair"}
    for name in runs:
        pretrain(
            name, data=f"{data}#lang=none#group=none", out=tmp_path / name, budget="1 steps", overrides=grid.SMALL, quiet=True
        )  # fmt: skip
    paths = [str(tmp_path / name) for name in runs]
    assert call("report", paths[0], "--samples", 0, "--out", tmp_path / "r.html")[0] == 0
    assert not (tmp_path / "llama" / "samples.json").exists()
    code, out, err = call("report", *paths, "--out", tmp_path / "r.html")
    assert code == 0, err
    for name, key in runs.items():
        path = tmp_path / name / "samples.json"
        assert path.exists() == (key is not None)
        assert key is None or [*json.loads(path.read_text())] == [key]
    text = Path(out.strip()).read_text("utf-8")
    assert "llama continues" in text and "bert fills in masked words" in text and "t5 repairs removed spans" in text


def test_a_report_of_alignment_shows_what_was_aimed_at(tmp_path: Path) -> None:
    """Reward and divergence as curves of all runs, held-out numbers and answers before and after."""
    rows = [{"number": i, "prompt": f"ask {i}", "answer": f"{EVIL} {i}", "reward": i / 4} for i in range(3)]
    later = [row | {"answer": "better", "reward": 1.0} for row in rows[1:]]
    numbers = {"reward": 0.75, "length": 4.0, "kl": 0.5, "targets": 3.0}
    summary = {"val": numbers, "before": numbers | {"reward": 0.25}, "answers": {"before": rows, "after": later}}
    runs = [make(tmp_path / what, "gpt2", summary=summary) for what in ("PPO", "GRPO")]
    for run, reward in zip(runs, (0.5, 0.7), strict=True):
        info = json.loads((run / "run.json").read_text())
        info["plan"]["objective"] = {"kind": run.name}
        (run / "run.json").write_text(json.dumps(info))
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        lines = [row | {"reward": reward, "kl": row["step"] / 100} for row in steps]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    text = page.render([report.read(run) for run in runs])
    checked = Checker()
    checked.feed(text)
    section = text[text.index('<section id="alignment"') : text.index('<section id="speed"')]
    assert section.count('<svg class="mini"') == 2 and "0.7 to 0.7" in section
    assert "0.750 <small>reward on held-out prompts, 0.250 before</small>" in text
    assert section.count("ask 1<") == 2 and "ask 0" not in section and "better <small>reward 1</small>" in section
    assert "<script>alert" not in text and "bits per byte: it" not in text


OUTCOME = {
    "prompts": 3, "reference": "SFT", "rewards": ["reward", "gold"],
    "models": {
        "start": {"reward": 0.1, "gold": 0.5, "length": 9.0, "ended": 1.0, "kl": 4.0},
        "SFT": {"reward": 0.2, "gold": 0.7, "length": 8.0, "ended": 1.0, "kl": 0.0, "win": 0.6, "win_interval": [0.4, 0.8]},
        "PPO": {"reward": 0.9, "gold": 0.6, "length": 7.0, "ended": 1.0, "kl": 9.0, "win": 0.5, "win_interval": [0.3, 0.7]},
    },
    "samples": [
        {"prompt": f"ask {EVIL}", "answers": {"start": "one", "SFT": "two", "PPO": EVIL},
         "gold": {"start": 0.1, "SFT": 0.9, "PPO": 0.2}}
    ],
}  # fmt: skip


def test_a_report_shows_what_the_stages_of_a_chain_came_to(tmp_path: Path) -> None:
    """Each reward, how often a model wins with its interval, rewards by divergence, and answers side by side."""
    run = make(tmp_path / "chain", "gpt2")
    (run / "outcome.json").write_text(json.dumps(OUTCOME))
    text = page.render([report.read(run)])
    Checker().feed(text)
    section = text[text.index('<section id="alignment"') : text.index('<section id="speed"')]
    assert "0.60 <small>(0.40 to 0.80)</small>" in section and "wins against start" in section
    assert section.count('<svg class="mini"') == 2 and 'aria-label="gold by root of the KL from SFT, nats"' in section
    assert '<td class="n best" data-label="reward">0.90</td>' in section
    assert "two <small class=best>0.90</small>" in section and "<script>alert" not in text
    (run / "outcome.json").write_text(json.dumps(OUTCOME | {"models": []}))
    with pytest.raises(DataError, match=r"outcome.json is damaged: models"):
        report.read(run)


def test_a_reward_that_is_not_learnt_is_drawn_by_the_divergence(tmp_path: Path) -> None:
    """Beside the one that is: the curve of over-optimisation. Without one there is no such picture."""
    run = make(tmp_path / "ppo", "gpt2", summary={"win": {"share": 0.75, "low": 0.5, "high": 0.9, "prompts": 16}})
    summary = json.loads((run / "summary.json").read_text())
    summary["val"] = {"reward": 0.5, "length": 3.0}
    (run / "summary.json").write_text(json.dumps(summary))
    info = json.loads((run / "run.json").read_text())
    rewards = [{"source": "a.py:learnt", "weight": 1.0}, {"source": "builtin:careful", "weight": 0.0}]
    info["plan"]["objective"] = {"kind": "PPO", "rewards": rewards}
    (run / "run.json").write_text(json.dumps(info))
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row | {"reward": 0.1, "reward_learnt": 0.1, "reward_careful": 0.2, "kl": row["step"]} for row in steps]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = page.render([report.read(run)])
    assert "reward (learnt) by divergence" in text and "careful (not learnt) by divergence" in text
    assert "learnt (not learnt)" not in text and "better than before on 75% of 16 (50% to 90%)" in text
    info["plan"]["objective"]["rewards"] = rewards[:1]
    (run / "run.json").write_text(json.dumps(info))
    assert "by divergence" not in page.render([report.read(run)])
