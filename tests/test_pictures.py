"""The two pictures: pages that are whole and load nothing, a layout without overlaps, and both in a real browser."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess
import typing
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest

from forest import grown
from stemma import families, markup, pictures, spec
from stemma.declare.family import About, Design
from stemma.errors import UsageError
from stemma.markup import asset
from stemma.nn import parts
from stemma.nn.parts import FanIn, PreNorm
from stemma.pictures import block, boxes, diff, figure, marks, sketches, tree
from stemma.pictures.layout import BOX, ROW, layout
from stemma.spec import Spec
from stemma.words import PARTS, children, compare
from test_cli import Call, call  # noqa: F401
from test_report import Checker

EVIL = '</script><script>alert("1")</script> & <b>'
PAIRS = [("bert", "roberta"), ("gpt2", "llama"), ("t5", "mistral"), ("transformer", "t5"), ("bert", "gpt1"),
         ("bert-base-uncased", "roberta-base"), ("llama-7b", "llama-65b"), ("gpt2", "gpt2"), ("palm", "llama"),
         ("palm", "command-r"), ("xlnet", "bert"), ("deberta-v2", "albert"), ("glm-130b", "glm"), ("chatglm", "unilm"),
         ("gemma3", "longllama"), ("mixtral", "qwen3-moe"), ("umt5", "transformer"), ("electra", "deberta-v3")]  # fmt: skip
# every shape that a block can have stands in one of these
SHAPES = [("palm", "llama"), ("xlnet", "deberta-v2"), ("chatglm", "gemma3"), ("qwen3-moe", "longllama"),
          ("unilm", "albert"), ("glm", "umt5")]  # fmt: skip
PUBLISHED = sorted(name for name, f in families.tree().items() if f.edge != "unpublished")


class Page(Checker):
    """A page's tags, kept with their attributes; SVG shapes that end at once are no open tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "wbr":
            return
        super().handle_starttag(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def having(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.tags if name in attrs]


def whole(text: str) -> Page:
    """The page, after checking that it is complete in itself."""
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert len(page.ids) == len(set(page.ids))
    loads = [
        a for t, a in page.tags if "src" in a or "srcset" in a or "data" in a or t in ("iframe", "object", "embed")
    ]
    assert loads == []
    assert [a["href"] for t, a in page.tags if t in ("link", "image", "use", "base") and "href" in a] == ["data:,"]
    assert "@import" not in text and "url(" not in text
    links = [a["href"] or "" for t, a in page.tags if t == "a"]
    assert all(h.startswith(("#", "https://arxiv.org/abs/", "https://github.com/")) for h in links)
    assert len(re.findall("https?://", text)) == sum(h.startswith("https") for h in links)
    return page


# ---------------------------------------------------------------- the tree


@pytest.fixture(scope="module")
def small_page() -> str:
    return tree.render()


@pytest.fixture(scope="module")
def large_page() -> tuple[str, dict[str, Any]]:
    """The page of a tree that has grown, and its families by name."""
    with grown() as known:
        return tree.render(), dict(known)


def test_every_family_stands_once_with_its_edge(large_page: tuple[str, dict[str, Any]]) -> None:
    text, known = large_page
    assert len(known) > 80
    page = whole(text)
    assert sorted(a["data-name"] or "" for a in page.having("data-name")) == sorted(known)
    assert sorted(a["data-of"] or "" for a in page.having("data-of")) == sorted(known)
    drawn = {(a["data-from"], a["data-to"]): a["class"] or "" for a in page.having("data-to")}
    assert set(drawn) == {(f.parent.name, f.name) for f in known.values() if f.parent}
    for (_, name), css in drawn.items():
        family = known[name or ""]
        assert all((edge in css.split()) == (family.edge == edge) for edge in ("trained", "unpublished"))
        assert family.arch.structure in css.split()


def test_the_tree_says_all_that_is_declared(small_page: str) -> None:
    text = small_page
    for family in families.tree().values():
        article = text[text.index(f'id="about-{family.name}"') :].partition("</article>")[0]
        plain = html.unescape(re.sub(r"<[^>]+>", "", article.replace("<wbr>", "")))
        assert family.about.title in plain and family.about.source in plain
        for path in family.changes:
            assert path in plain
        if family.edge == "unpublished":
            assert "never published" in plain
            continue
        for part in PARTS:
            assert all(path in plain for path, _ in spec.leaves(getattr(family, part)))
        for name, size in family.sizes.items():
            assert name in plain and (size.published or "no count published") in plain
            assert size.hub is None or size.hub in plain


def test_text_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    bert = families.family("bert")
    odd = bert.evolve(
        "odd<i>", {"recipe.data": EVIL, "text.pad": EVIL}, sizes={EVIL: bert.sizes["bert-tiny"]},
        about=About(2020, EVIL, EVIL, weights=EVIL, note=EVIL),
    )  # fmt: skip
    monkeypatch.setitem(families._added, odd.name, odd)
    for text in (tree.render("bert"), diff.render("bert", "odd<i>"), diff.render("bert-tiny", EVIL)):
        whole(text)
        assert "<script>alert" not in text and "<i>" not in re.sub(r"<i>[→←]</i>", "", text)
        assert "&lt;script&gt;alert" in text


def test_pages_are_deterministic(small_page: str) -> None:
    assert tree.render() == small_page
    assert diff.render("bert", "llama") == diff.render("bert", "llama")


def test_a_part_of_the_tree() -> None:
    page = whole(tree.render("gpt3"))
    names = {a["data-name"] for a in page.having("data-name")}
    assert names == {n for n, f in families.tree().items() if any(a.name == "gpt3" for a in f.lineage)}
    assert not any(a["data-to"] == "gpt3" for a in page.having("data-to"))
    with pytest.raises(UsageError, match="did you mean"):
        tree.render("lama")


@pytest.mark.parametrize("large", [False, True])
def test_nothing_in_the_layout_overlaps(large: bool) -> None:
    with grown() as known:
        roots = children(None) if large else [known["mistral"]]
        plan = layout(roots)
        boxes = {n.family.name: (n.x, n.y, n.x + n.w, n.y + BOX) for n in plan.nodes}
        labels = {
            n.family.name: (n.label_x, n.y, n.label_x + marks.width(n.label, 12.5), n.y + BOX) for n in plan.nodes
        }
    for one, two in combinations([*boxes.values(), *labels.values()], 2):
        assert one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
    for node in plan.nodes:
        assert node.x >= 0 and node.label_x < plan.width and boxes[node.family.name][3] <= plan.height
        parent = node.family.parent
        if parent and parent.name in boxes:
            assert node.x > boxes[parent.name][0] and node.y > boxes[parent.name][1]
            # what stands beside the line from parent to child begins to the right of the line
            stem = plan[parent.name].stem
            between = [n for n in plan.nodes if plan[parent.name].row < n.row < node.row]
            assert all(n.x > stem for n in between)
    starts = [y.x for y in plan.years]
    assert starts == sorted(starts)
    for year, after in zip(plan.years, plan.years[1:], strict=False):
        assert year.x + year.w <= after.x
        assert all(year.x <= n.x < after.x for n in plan.nodes if n.family.about.year == year.year)
    assert len({n.row for n in plan.nodes}) == len(plan.nodes) and plan.height == len(plan.nodes) * ROW
    if large:
        assert plan.width <= 900  # it stays readable beside its panel


def test_a_child_said_to_be_older_than_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    llama = families.family("llama")
    old = llama.evolve("older", {"recipe.lr": 1.0}, sizes=llama.sizes, about=About(2019, "x", "y"))
    monkeypatch.setitem(families._added, "older", old)
    plan = layout(children(None))
    assert plan["older"].x > plan["llama"].x
    assert plan["older"].label.startswith("(2019) ")


@pytest.mark.parametrize(
    ("theme", "names"), [(0, ("paper", "card", "wash")), (1, ("paper", "card", "wash"))], ids=["light", "dark"]
)
def test_contrast(theme: int, names: tuple[str, ...]) -> None:
    css = asset(markup.__file__, "base.css") + asset(diff.__file__, "common.css") + asset(diff.__file__, "diff.css")
    colours = {n: (a, b) for n, a, b in re.findall(r"--(\w+): light-dark\((#\w{6}|#\w{3}), (#\w{6}|#\w{3})\)", css)}

    def light(name: str) -> float:
        value = colours[name][theme].lstrip("#")
        parts = [int(value[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for text, ground in product(("ink", "soft", "accent", "c0", "c1", "c2", "changed", "only"), names):
        high, low = sorted((light(text), light(ground)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


# ---------------------------------------------------------------- two networks


def check_marks(text: str, a: str, b: str) -> None:
    """Every difference of two designs is listed on their page, and marked where the drawing has it."""
    page = whole(text)
    changes = diff.design_changes(families.design(a), families.design(b))
    _, _, declared = compare(a, b)  # what a size sets anew differs between families and not between the sizes drawn
    listed = [attrs["data-path"] for attrs in page.having("data-path")]
    assert set(listed) == {c.path for c in (*changes, *declared)}
    marked = {
        path
        for attrs in page.having("data-paths")
        if {"changed", "only"} & set((attrs.get("class") or "").split())
        for path in (attrs["data-paths"] or "").split()
    }
    for change in changes:
        if change.path.startswith(("arch.", "dims.")) and change.path != "arch.structure":
            assert any(diff.touches(change.path, path) for path in marked), change.path
    if not changes:
        assert not marked and "Nothing differs" in text


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_every_change_is_listed_and_marked(a: str, b: str) -> None:
    check_marks(diff.render(a, b), a, b)


def test_what_stands_where() -> None:
    def keys(name: str) -> list[list[str]]:
        return [[i.key for i in (*s.before, *s.block, *s.after)] for s in block.stacks(families.design(name))]

    assert keys("bert") == [
        [
            "text",
            "embed",
            "embed_norm",
            "attention.in",
            "attention.sum",
            "attention.post",
            "mlp.in",
            "mlp.sum",
            "mlp.post",
            "heads",
            "target",
        ]
    ]
    assert keys("gpt2")[0][2:] == [
        *("attention.pre", "attention.in", "attention.sum", "mlp.pre", "mlp.in", "mlp.sum", "final", "heads", "target")
    ]
    encoder, decoder = keys("t5")
    assert "cross.in" in decoder and "cross.in" not in encoder and "heads" not in encoder
    t5 = block.stacks(families.design("t5"))[1]
    chips = {i.key: i for i in t5.items}
    assert chips["mask"].title == "Causal" and "32 buckets" in chips["position"].text[0]
    mistral = {i.key: i for i in block.stacks(families.design("mistral"))[0].items}
    assert mistral["mlp.in"].sketch[0] == "gated" and mistral["attention.in"].sketch == ("heads", 32, 8)
    assert mistral["mask"].text == ("sees the last 4,096 tokens",)


@dataclasses.dataclass(frozen=True)
class HybridRegularisedNormalisation(Spec):
    """A norm that no picture knows (Nobody 2031): x / |x|."""

    strength: float = 0.5


@dataclasses.dataclass(frozen=True)
class Braided(Spec):
    """`x = x + f(norm(x)) + g(norm(x))` (Nobody 2031)."""

    strands: int = 3


@dataclasses.dataclass(frozen=True)
class Entangled(Spec):
    size: int = 77


@dataclasses.dataclass(frozen=True)
class Committee(Spec):
    """Several MLPs of which some speak: a router chooses."""

    members: int = 8
    speaking: int = 2


@dataclasses.dataclass(frozen=True)
class Loud(PreNorm):
    """PreNorm with a field that no picture knows."""

    volume: int = 1


def foreign(name: str, **changes: Any) -> Design:
    """A design with components of types that `nn.parts` does not have."""
    design = families.design(name)
    return dataclasses.replace(design, arch=dataclasses.replace(design.arch, init=FanIn(), **changes))


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_components_that_no_case_draws_are_shown_in_their_own_words(name: str) -> None:
    masked = {} if name == "bert" else {"mask": Entangled(5)}
    odd = foreign(
        name, norm=HybridRegularisedNormalisation(), residual=Braided(), position=Entangled(), mlp=Committee(), **masked
    )
    items = [i for s in block.stacks(odd) for i in s.items]
    said = {i.title: " ".join(i.text) for i in items if not i.known}
    assert said["Committee"].endswith("Several MLPs of which some speak members 8, speaking 2")
    assert said["Braided"].startswith("x = x + f(norm(x)) + g(norm(x)) strands 3 norm HybridRegularisedNormalisation")
    assert said["Entangled"] in ("size 77", "size 5")
    sides = [block.stacks(odd), block.stacks(families.design(name))]
    changes = diff.design_changes(families.design(name), odd)
    for role, group in diff.grouped(*sides).items():
        plan = figure.arrange(group)
        for stack in group:
            drawn = figure.draw(stack, plan, diff.marker(group[0], changes), label=role)
            Page(drawn)
            assert ("unknown" in drawn) == ("loose" in drawn) == any(stack is s for s in sides[0])
    lone = foreign(name, norm=HybridRegularisedNormalisation(), residual=PreNorm())
    assert any(i.title == "HybridRegularisedNormalisation" and i.key == "mlp.pre" for i in block.stacks(lone)[0].items)


def test_fields_that_no_case_mentions_are_named() -> None:
    loud = {i.key: i for i in block.stacks(foreign("gpt2", residual=Loud(volume=11)))[0].items}
    assert loud["residual"].text == ("volume 11",) and loud["residual"].title == "pre-norm"

    @dataclasses.dataclass(frozen=True)
    class Wider(type(families.design("gpt2").arch)):  # type: ignore[misc]
        mixers: int = 4

    design = families.design("gpt2")
    fields = {f.name: getattr(design.arch, f.name) for f in dataclasses.fields(design.arch)}
    wide = dataclasses.replace(design, arch=Wider(**fields))
    assert ("mixers", ("4",)) in [(i.title, i.text) for i in block.undrawn(wide)]


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_boxes_of_a_stack_do_not_overlap(a: str, b: str) -> None:
    for group in diff.grouped(block.stacks(families.design(a)), block.stacks(families.design(b))).values():
        plan = figure.arrange(group)
        places = sorted(plan.places.values(), key=lambda p: p.y)
        assert all(one.end < two.y for one, two in combinations(places, 2))
        assert places[0].y > 0 and places[-1].end < plan.height
        if plan.fork is not None:  # it takes the room of boxes that another side has one above the other
            above, below = plan.places["mlp.sum"], plan.places["attention.pre"]
            assert above.end < plan.fork.y and plan.fork.end < below.y
        for stack in group:
            for item in (*stack.before, *stack.block, *stack.after):
                if isinstance(item, boxes.Item):
                    assert figure.box_height(item) <= plan.places[item.key].h
            if stack.fork is not None:
                assert all(figure.box_height(b, figure.BRANCH_W) <= plan["fork"].h for b in stack.fork.items)
            inside = [plan[i.key] for i in stack.block]
            assert all(plan.frame.y < p.y and p.end < plan.frame.end for p in inside)
            chips = [p for _, _, _, p in figure.frame_chips(stack, plan.frame.y)]
            assert max(p.end for p in chips) < min(p.y for p in inside)


# ---------------------------------------------------------------- every component has its shape


def drawn(design: Design) -> list[str]:
    """The stacks of a design as SVG, by themselves."""
    own = block.stacks(design)
    return [figure.draw(stack, figure.arrange([stack]), lambda _: ("", ""), label=stack.role) for stack in own]


def shape(svg: str) -> tuple[int, ...]:
    """Sums, residual lines, factors on them, boxes and wires: what a drawing is told apart by."""
    return tuple(svg.count(f'class="{css}"') for css in ("wire skip", "chip scale", "box", "wire"))


def with_residual(residual: parts.Residual, name: str = "gpt2") -> Design:
    design = families.design(name)
    return dataclasses.replace(design, arch=dataclasses.replace(design.arch, residual=residual))


def test_each_residual_draws_a_shape_of_its_own() -> None:
    kinds = typing.get_args(parts.Residual)
    shapes = {}
    for kind in kinds:
        (svg,) = drawn(with_residual(kind()))
        Page(svg)
        assert "unknown" not in svg and "loose" not in svg
        order = [i.key for i in block.stacks(with_residual(kind()))[0].block]
        shapes[kind] = (*shape(svg), *order)
    assert len(set(shapes.values())) == len(kinds)
    # one sum of three terms, two sums else; a factor on each stream; norms on both sides
    assert shapes[parts.Parallel][0] == 1 and all(shapes[k][0] == 2 for k in kinds if k is not parts.Parallel)
    assert shapes[parts.DeepNorm][1] == 2 and all(shapes[k][1] == 0 for k in kinds if k is not parts.DeepNorm)
    assert shapes[parts.Sandwich][4:8] == ("attention.pre", "attention.in", "attention.out", "attention.sum")
    assert shapes[parts.Parallel][4:] == ("attention.pre", "fork", "mlp.sum")


@pytest.mark.parametrize("kind", typing.get_args(parts.Residual))
def test_each_residual_joins_the_encoder_too(kind: type[parts.Residual]) -> None:
    """Three branches, with the encoder's output led to the middle one."""
    encoder, decoder = drawn(with_residual(kind(), "t5"))
    assert decoder.count('class="wire memory"') == 1 and "memory" not in encoder
    text = diff.pictures((with_residual(kind(), "t5"),) * 2, ("a", "b"), [])
    assert text.count('class="wire memory"') == 4


def test_the_factor_of_deepnorm() -> None:
    design = families.design("glm-130b")
    scales = [i for s in block.stacks(design) for i in s.items if i.key.endswith(".scale")]
    assert [i.title for i in scales] == ["× 11.8"] * 2  # sqrt(2 * 70)
    changes = diff.design_changes(families.design("bert"), design)
    mark = diff.marker(block.stacks(families.design("bert"))[0], changes)
    assert {mark(i)[0] for i in scales} == {"only"}


POSITIONS: dict[type[Spec], tuple[str, str]] = {
    parts.Sinusoidal: ("transformer", "waves"), parts.Learned: ("gpt2", "table"), parts.BlankLearned: ("glm", "table"),
    parts.Rotary: ("llama", "scores"), parts.BlankRotary: ("chatglm", "scores"), parts.Buckets: ("t5", "scores"),
    parts.LayerBuckets: ("umt5", "scores"), parts.Disentangled: ("deberta", "scores"),
    parts.RelativeSinusoidal: ("xlnet", "scores"),
}  # fmt: skip


def test_each_position_is_drawn() -> None:
    assert set(POSITIONS) == set(typing.get_args(parts.Position)) - {parts.CustomPosition, parts.ALiBi}
    alibi = spec.edit(families.design("llama"), {"arch.position": parts.ALiBi()})
    (item,) = (i for i in block.stacks(alibi)[-1].items if i.key == "position")
    assert item.known and "a fixed slope for every head" in item.text[0]
    seen = set()
    for kind, (name, sketch) in POSITIONS.items():
        design = families.design(name)
        assert type(design.arch.position) is kind
        (item,) = (i for i in block.stacks(design)[-1].items if i.key == "position")
        assert item.known and item.sketch[0] == sketch
        assert drawn(design)[-1].count(f'class="sketch {sketch}"') == 1
        seen.add(item.sketch)
    assert len(seen) == len(POSITIONS) - 1  # a table of buckets a stack or a layer: that the words say
    (item,) = (i for i in block.stacks(families.design("deberta"))[0].items if i.key == "position")
    assert [t.label for t in item.sketch[1:]] == ["c2c", "c2p", "p2c"]
    (svg,) = drawn(families.design("chatglm"))
    assert svg.count('class="turn"') == 4 and drawn(families.design("llama"))[0].count('class="turn"') == 2


def test_each_mask_is_drawn() -> None:
    kinds = {*typing.get_args(parts.Mask), *typing.get_args(parts.LayerMask)} - {parts.Recall}  # Memory draws it
    grids = {kind: block.mask(kind(), ()).sketch for kind in kinds}
    assert all(sketch[0] in ("mask", "masks") for sketch in grids.values())
    assert len(set(grids.values())) == len(kinds)
    for sketch in grids.values():
        for name in sketch[1:]:
            ink = sketches.mask(0, 0, name)
            assert 'class="fill"' in ink and ink.count("h3.8") in range(6, 37)
    assert block.mask(families.family("gemma3").arch.mask, ()).sketch == ("masks", *["sliding"] * 5, "causal")
    assert not any(sketches.sees("query", i, i) for i in range(6)) and sketches.sees("content", 2, 2)
    assert sketches.sees("prefix", 0, 2) and not sketches.sees("prefix", 0, 3)


def test_two_streams_run_through_the_same_boxes() -> None:
    (svg,) = drawn(families.design("xlnet"))
    (one,) = drawn(families.design("bert"))
    assert svg.count('class="sum"') == 4 and one.count('class="sum"') == 2
    keys = {i.key for i in block.stacks(families.design("xlnet"))[0].items}
    assert {"streams", "memory", "query"} <= keys
    (long,) = (i for i in block.stacks(families.design("longllama"))[0].items if i.key == "memory")
    assert long.sketch == ("store",) and "6, 12, 18" in long.text[1]


@pytest.mark.parametrize(("name", "n", "k"), [("mixtral-8x7b", 8, 2), ("qwen3-30b-a3b", 128, 8)])
def test_experts_fan_out(name: str, n: int, k: int) -> None:
    (item,) = (i for i in block.stacks(families.design(name))[0].boxes if i.key == "mlp.in")
    assert item.sketch == ("experts", n, k) and item.text[0].startswith(f"{k} of {n} ")
    _, ink = sketches.experts(0, 0, 218, n, k)
    fan, idle, taken = re.findall(r'<path class="(?:wire|idle|idle many|fill)" d="([^"]*)"', ink)
    assert (fan.count("L"), idle.count("Z"), taken.count("Z")) == (2 * k, n - k, k)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_family_is_drawn_beside_its_parent(name: str) -> None:
    family = families.family(name)
    assert all(i.known for s in block.stacks(families.design(name)) for i in s.items)  # nothing in words only
    for svg in drawn(families.design(name)):
        Page(svg)
    parent = family.parent
    if parent is None or parent.edge == "unpublished":
        return
    check_marks(diff.render(parent.name, name), parent.name, name)


def test_wrapping_keeps_every_word() -> None:
    text = "a picture of incomprehensibilities and SupercalifragilisticallyNamedComponents"
    lines = marks.wrap(text, 90, 12.5)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(marks.width(line, 12.5) <= 90 for line in lines)
    assert marks.wrap("", 90, 12.5) == []


# ---------------------------------------------------------------- files and the command line


def test_command_line(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    for args, name in (
        (("tree", "--html"), "tree.html"),
        (("tree", "llama", "--html"), "tree-llama.html"),
        (("diff", "bert-base-uncased", "roberta-base", "--html"), "diff-bert-base-uncased-roberta-base.html"),
        (("diff", "bert", "gpt1", "--html", "deep/er/it.html"), "deep/er/it.html"),
        (("tree", "llama", "--html", "tree.html"), "tree.html"),  # a page may be written again
    ):
        code, out, err = call(*args)
        assert (code, out.strip(), err) == (0, name, "")
        whole(Path(name).read_text("utf-8"))
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("tree", "--html", "llama"), "ends in .html, and 'llama' does not"),
        (("tree", "--html", "notes.html"), "notes.html exists and is no HTML page"),
        (("diff", "bert", "gpt1", "--html", "notes.html"), "notes.html exists and is no HTML page"),
        (("tree", "--html", "folder.html"), "is no HTML page"),
        (("tree", "--html", "--json"), "choose one"),
        (("diff", "bert", "gpt1", "--html", "--json"), "choose one"),
        (("diff", "bert", "gtp1", "--html"), "did you mean 'gpt1'"),
        (("tree", "lama", "--html"), "did you mean"),
    ],
)
def test_errors(
    call: Call,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.html").write_text("my notes\n")
    Path("folder.html").mkdir()
    code, out, err = call(*args)
    assert code == 2 and out == "" and words in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.html", "notes.html"]
    assert Path("notes.html").read_text() == "my notes\n"


def test_no_torch_is_loaded(tmp_path: Path) -> None:
    import sys

    code = (
        "import sys\nfrom stemma import pictures\n"
        f"pictures.write_tree({str(tmp_path / 't.html')!r}); pictures.write_diff('bert', 't5', {str(tmp_path / 'd.html')!r})\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- in a browser

Probe = dict[str, Any]
Browse = Callable[..., Probe]

# Runs after the page's own script; what it finds is read from the dumped document.
PROBE = """<script>addEventListener('load', () => {
  const $ = q => [...document.querySelectorAll(q)];
  const seen = e => e.getClientRects().length > 0 && getComputedStyle(e).visibility !== 'hidden';
  const rect = e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const out = {steps: []};
  const row = name => document.querySelector(`.row[data-name="${name}"]`);
  const press = key => document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
  const point = (name, way) => row(name).dispatchEvent(new PointerEvent('pointer' + way, {pointerType: 'mouse'}));
  const type = text => { search.value = text; search.dispatchEvent(new Event('input')); };
  const step = () => out.steps.push({
    article: $('.about').filter(e => !e.hidden).map(e => e.dataset.of || ''), hash: decodeURIComponent(location.hash),
    hits: $('.row.hit').map(e => e.dataset.name), at: document.activeElement.dataset.name || document.activeElement.id,
    dim: $('.row').filter(e => +getComputedStyle(e).opacity < 0.5).map(e => e.dataset.name),
    found: (document.getElementById('found') || {}).textContent,
    scheme: getComputedStyle(document.documentElement).colorScheme,
  });
  ACTION;
  step();
  out.errors = window.errors;
  out.loaded = performance.getEntriesByType('resource').map(r => r.name).filter(n => !n.startsWith('data:'));
  out.width = [document.documentElement.scrollWidth, innerWidth];
  out.boxes = $('.row .box, .row .delta').filter(seen).filter(e => e.textContent).map(e => [e.textContent, ...rect(e)]);
  const inked = e => { const r = document.createRange(); r.selectNodeContents(e); return e.textContent ? rect(r) : rect(e); };
  out.tools = $('.tools input, .tools output').filter(seen).map(e => [e.id, ...inked(e)]);
  out.tools.push(...$('#theme').map(e => [e.id, ...rect(e)]));
  out.panel = seen(document.getElementById('panel') || document.body);
  out.line = $('.row.line').map(e => e.dataset.name);
  out.edges = $('.edge.on').map(e => e.dataset.to);
  out.ground = getComputedStyle(document.body).backgroundColor;
  out.small = $('body *').filter(e => seen(e) && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
    .filter(e => parseFloat(getComputedStyle(e).fontSize) < 12 && !['SCRIPT', 'STYLE'].includes(e.tagName)).map(e => e.outerHTML.slice(0, 90));
  out.spills = $('svg.stack .box, svg.stack .chip').flatMap(g => {
    const frame = rect(g.querySelector('rect'));
    return [...g.querySelectorAll('text, .sketch')].map(t => [t.textContent || g.dataset.key, rect(t)])
      .filter(([, r]) => r[0] < frame[0] || r[2] > frame[2] || r[1] < frame[1] - 1 || r[3] > frame[3] + 1).map(([t]) => t);
  });
  const pre = document.createElement('pre');
  pre.id = 'probe';
  pre.textContent = JSON.stringify(out);
  if (parent === window) document.body.append(pre); else parent.postMessage(pre.textContent, '*');
});</script>"""
# Headless windows are at least 500 pixels wide; a telephone's page stands in a frame.
FRAME = """<!doctype html><style>body {{ margin: 0 }} iframe {{ border: 0; width: {w}px; height: {h}px }}</style>
<script>addEventListener('message', event => {{
  const pre = document.createElement('pre');
  pre.id = 'probe';
  pre.textContent = event.data;
  document.body.append(pre);
}});</script><iframe src="{src}"></iframe>"""
WATCH = """<script>window.errors = [];
addEventListener('error', e => errors.push(String(e.message)));
console.error = console.warn = (...a) => errors.push(a.join(' '));</script>"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that starts a headless Chromium, where there is one that starts."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is in PATH")
    profile = tmp_path_factory.mktemp("profile")
    command = [found, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", f"--user-data-dir={profile}"]  # fmt: skip
    try:
        done = subprocess.run([*command, "--dump-dom", "data:text/html,<p>ready"], capture_output=True, timeout=60)
        ready = b"ready" in done.stdout
    except subprocess.TimeoutExpired:
        ready = False
    if not ready:
        pytest.skip(f"{found} does not start here (it needs more address space than `ulimit -v` may allow)")
    return command


@pytest.fixture
def browse(chromium: list[str], tmp_path: Path) -> Browse:
    """Open a page at a hash and a size, do something on it, and say what stands there."""

    def open_page(text: str, fragment: str = "", size: str = "1280,900", action: str = "") -> Probe:
        page = tmp_path / "page.html"
        probe = PROBE.replace("ACTION", action)
        page.write_text(text.replace("<head>", "<head>" + WATCH, 1).replace("</body>", probe + "</body>"), "utf-8")
        command = [*chromium, f"--window-size={size}", "--virtual-time-budget=3000", "--dump-dom"]
        address = page.as_uri() + fragment
        w, h = size.split(",")
        if int(w) < 500:
            frame = tmp_path / "frame.html"
            frame.write_text(FRAME.format(w=w, h=h, src=html.escape(address)), "utf-8")
            address = frame.as_uri()
        done = subprocess.run([*command, address], capture_output=True, encoding="utf-8", timeout=120, check=False)
        found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)
        assert found, done.stderr[-2000:]
        data: Probe = json.loads(html.unescape(found[1]))
        assert data["errors"] == []
        assert data["loaded"] == []
        assert data["small"] == []
        assert data["width"][0] <= data["width"][1] == int(w)
        return data | data["steps"][-1]

    return open_page


def apart(boxes: list[list[Any]]) -> None:
    """No two of these rectangles overlap."""
    for (one, *a), (two, *b) in combinations(boxes, 2):
        assert a[2] <= b[0] + 0.5 or b[2] <= a[0] + 0.5 or a[3] <= b[1] + 0.5 or b[3] <= a[1] + 0.5, (one, two)


@pytest.mark.parametrize("size", ["1280,900", pytest.param("390,844", marks=pytest.mark.browser)])
def test_large_tree_as_it_is_drawn(browse: Browse, large_page: tuple[str, dict[str, Any]], size: str) -> None:
    text, known = large_page
    found = browse(text, size=size)
    assert len(found["boxes"]) == 2 * len(known)
    apart(found["boxes"])
    assert found["panel"] == (size == "1280,900")
    assert found["article"] == [""]


@pytest.mark.browser
def test_the_address_chooses_a_family(browse: Browse, small_page: str) -> None:
    found = browse(small_page, "#family=mistral&theme=dark")
    assert found["article"] == ["mistral"]
    assert found["line"] == ["transformer", "gpt1", "gpt2", "gpt3", "llama", "mistral"]
    assert sorted(found["edges"]) == ["gpt1", "gpt2", "gpt3", "llama", "mistral"]
    assert found["scheme"] == "dark" and found["ground"] == "rgb(22, 23, 26)"
    found = browse(small_page, "#family=nobody&theme=light")
    assert found["article"] == [""] and found["ground"] == "rgb(251, 250, 246)"


SEARCHES = [
    ("rotary", "llama mistral", "bert t5 gpt2"),
    ("encoder", "bert roberta", "transformer t5 gpt2"),
    ("Encoder-Decoder gated", "t5-v1.1", "t5 llama bert"),
    ("2302.13971", "llama", "mistral gpt3"),
    ("gpt2-xl", "gpt2", "gpt3 t5-v1.1"),
    ("nothing-of-the-kind", "", "transformer bert"),
]


@pytest.mark.browser
def test_search_dims_the_others(browse: Browse, small_page: str) -> None:
    known = set(families.tree())
    typed = "".join(f"type({words!r}); step();" for words, _, _ in SEARCHES)
    typed += "type(''); document.querySelector('[data-structure=\"encoder\"]').click()"
    *steps, button = browse(small_page, action=typed)["steps"]
    for (words, hits, others), step in zip(SEARCHES, steps, strict=True):
        assert set(hits.split()) <= set(step["hits"]), words
        assert set(others.split()) <= set(step["dim"]), words
        assert set(step["dim"]) == known - set(step["hits"])
        assert step["found"] == f"{len(step['hits'])} of {len(known)}"
        assert step["hash"] == f"#search={words}"
    assert button["hash"] == "#search=encoder" and button["hits"] == steps[1]["hits"]
    linked = browse(small_page, "#search=Encoder-Decoder%20gated&family=bert")
    assert linked["hits"] == steps[2]["hits"] and linked["article"] == ["bert"]


@pytest.mark.browser
@pytest.mark.parametrize("size", ["1280,900", "800,900", "390,844"])
def test_the_tools_stand_apart_while_searching(browse: Browse, small_page: str, size: str) -> None:
    found = browse(small_page, "#search=encoder&theme=light", size)
    assert [name for name, *_ in found["tools"]] == ["search", "found", "theme"]
    apart([[name, *(n + pad for n, pad in zip(r, (0, 0, 2, 0), strict=True))] for name, *r in found["tools"]])
    search, output, _ = (r for _, *r in found["tools"])
    assert search[2] - search[0] > 100 and output[2] - output[0] > 50


def test_pointing_focus_keys_and_clicks(browse: Browse, small_page: str) -> None:
    last = layout(children(None)).nodes[-1].family.name
    wanted = [
        ("point('t5', 'enter')", "t5", "", ""),
        ("point('t5', 'leave')", "", "", ""),
        ("row('gpt2').focus({focusVisible: true})", "gpt2", "", "gpt2"),
        ("press('ArrowLeft')", "gpt1", "", "gpt1"),
        ("press('ArrowDown')", "gpt2", "", "gpt2"),
        ("press('ArrowRight')", "gpt3", "", "gpt3"),
        ("press('ArrowUp')", "gpt2", "", "gpt2"),
        ("press('Home')", "transformer", "", "transformer"),
        ("press('End')", last, "", last),
        ("press('/')", "", "", "search"),
        ("type('roberta'); press('Enter')", "roberta", "#search=roberta", "roberta"),
        ("row('roberta').click()", "roberta", "#search=roberta&family=roberta", "close"),
        ("point('t5', 'enter')", "roberta", "#search=roberta&family=roberta", "close"),
        (
            "document.querySelector('#about-roberta a[href*=bert]').click()",
            "bert",
            "#search=roberta&family=bert",
            "close",
        ),
        ("press('Escape')", "", "#search=roberta", "bert"),
        ("search.focus(); press('Escape')", "", "", "search"),
        ("document.getElementById('theme').click()", "", "#theme=light", "search"),
        ("document.getElementById('theme').click()", "", "#theme=dark", "search"),
    ]
    found = browse(small_page, action="".join(f"{what}; step();" for what, *_ in wanted))
    for (what, article, where, at), step in zip(wanted, found["steps"], strict=False):
        assert (step["article"], step["hash"], step["at"]) == ([article], where, at), what
    assert [step["scheme"] for step in found["steps"][-3:]] == ["light", "dark", "dark"]


@pytest.mark.browser
def test_a_tap_on_a_telephone_opens_the_sheet(browse: Browse, small_page: str) -> None:
    found = browse(small_page, size="390,844", action="document.querySelector('.row[data-name=\"bert\"]').click()")
    assert found["panel"] and found["article"] == ["bert"]


TOGETHER = [(*pair, size) for size in ("1280,900", "390,844") for pair in (*PAIRS[2:4], *SHAPES)]


@pytest.mark.parametrize(
    ("a", "b", "size"), [TOGETHER[0], *(pytest.param(*row, marks=pytest.mark.browser) for row in TOGETHER[1:])]
)
def test_two_networks_in_a_browser(browse: Browse, a: str, b: str, size: str) -> None:
    found = browse(diff.render(a, b), "#theme=dark", size)
    assert found["spills"] == []
    assert found["scheme"] == "dark"


@pytest.mark.browser
def test_unknown_components_fit_their_boxes(browse: Browse, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = foreign(
        "t5", norm=HybridRegularisedNormalisation(), residual=Braided(), position=Entangled(), mlp=Committee()
    )
    real = families.design
    monkeypatch.setattr(families, "design", lambda name: odd if name == "t5" else real(name))
    text = diff.render("bert", "t5")
    assert text.count("unknown") > 4
    assert browse(text)["spills"] == []


def test_names_of_pages() -> None:
    assert pictures.page_path("a/b.HTML") == Path("a/b.HTML")
    with pytest.raises(UsageError, match=r"ends in \.html"):
        pictures.page_path("tree.json")
