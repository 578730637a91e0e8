"""Systems of long rows, and the documents that stand in for theirs."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import stemma
from reference.longllama import LongLlama
from stemma import families
from stemma.data import read
from stemma.declare.objectives import Chunks, CrossBatch
from stemma.errors import DataError, UsageError
from stemma.nn.model import IGNORED
from stemma.nn.parts import (
    Dims,
    LinearScaling,
    Memory,
    PowerScaling,
    RandomScaling,
    TruncatedScaling,
    XPosScaling,
)
from stemma.objectives import Setting, objective
from stemma.objectives.chunks import Chunked
from stemma.runs.metrics import read_metrics
from stemma.samples import lookups
from stemma.text import Tokenizer
from stemma.train import verify_resume
from stemma.tuning import systems, tune
from test_objectives import TOKENIZERS, Documents, same, some, take
from test_tune import tokenizer  # noqa: F401


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
        vocab_size=tokenizer.vocab_size,
    )  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("few") / "lookups.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in itertools.islice(lookups.rows(), 60)))
    return str(path)


def first_loss(run: Path) -> float:
    """Of a run's first step, which the weights that it begins from make."""
    return float(next(r["loss"] for r in read_metrics(run) if "loss" in r))


# ---------------------------------------------------------------- the documents


def test_what_is_asked_for_was_said_before() -> None:
    rows = [*lookups.rows()]
    assert len(rows) == lookups.MANY and rows == [*lookups.rows()]
    for row in rows:
        text = row["text"]
        if text.startswith("the"):
            said = [s for s in text.split(" . ") if s.startswith("the pass key is")]
            assert len(said) == 2 and said[0] == said[1].removesuffix(" .")
            continue
        told, _, asked = text.partition(" ? ")
        known = dict(part.split() for part in told.split(" ;") if part.strip())
        assert len(known) >= lookups.PAIRS[0]
        assert all(known[k] == v for k, v in (part.split() for part in asked.removesuffix(" ;").split(" ; ? ")))


def test_answers_are_checked() -> None:
    for row in [*lookups.questions(9, 40), *lookups.passkeys(12, 10)]:
        said = row["text"].rpartition(" ")[0] if row["text"].rpartition(" ? ")[2] else row["text"]
        assert row["answer"] in said and 0 <= row["depth"] <= 1
        assert lookups.right(f" {row['answer']} ; ?", row) and not lookups.right("", row)
        assert not lookups.right("zebra zebra zebra", row)
    assert [*lookups.questions(9, 3, seed=1)] != [*lookups.questions(9, 3, seed=2)]
    assert next(lookups.passkeys(30, 2))["text"].startswith("the pass key is")
    assert next(lookups.registers(7, 1, asked=2)).count("?") == 2


def test_rows_with_a_text_are_read_as_text_and_as_rows() -> None:
    first = next(iter(lookups.rows()))
    assert next(iter(read("builtin:lookups").documents())).text == first["text"]
    assert json.loads(next(iter(read("builtin:lookups#field=*").documents())).text) == first
    assert read("builtin:lookups").facts != read("builtin:lookups#field=*").facts
    assert json.loads(next(iter(read("builtin:captain").documents())).text)  # rows without a text stay rows


# ---------------------------------------------------------------- LongLLaMA


def test_longllama_from_a_llama(tmp_path: Path, llama: Path, few: str) -> None:
    """One command: the memory mask, the paper's objective, rate and decay; what comes out is read by the reference."""
    more: dict[str, Any] = {"budget": "30 steps", "overrides": {"recipe.lr": 5e-3}, "quiet": True}
    run = tune("longllama", start=str(llama), data=few, out=tmp_path / "run", **more)
    assert run.summary["val"]["loss"] < first_loss(tmp_path / "run") - 0.3
    plan = run.plan
    assert plan.objective == CrossBatch(texts=2, mixture=((0, 0), (1, 1), (2, 1), (3, 0)))
    assert plan.recipe.optimizer.weight_decay == 0.01 and plan.recipe.schedule.shape == "constant"
    assert plan.arch.mask == Memory((plan.dims.layers // 2,), plan.context // 2)
    verify_resume(tmp_path / "run", steps=2)
    there = stemma.load(tmp_path / "run")
    assert there.family.name == "longllama" and there.arch.mask == plan.arch.mask
    exact = stemma.spec.edit(there.arch, {"mask.dtype": "float32"})
    model = stemma.nn.model.Model(exact, there.dims).double()
    model.load_state_dict(there.state_dict())
    judge = LongLlama(
        {k: v.detach() for k, v in model.named_parameters()}, plan.dims.layers, plan.dims.heads, plan.arch.position.base,
        plan.arch.norm.eps, plan.context, exact.mask.last, exact.mask.layers, torch.float32,
    )  # fmt: skip
    ids = torch.randint(5, plan.dims.vocab, (plan.context + 41,), generator=torch.Generator().manual_seed(4)).tolist()
    with torch.no_grad():
        assert (model.eval()(torch.tensor([ids])).logits[0] - judge.prompt(ids)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("layers", "memory"), [(26, (6, 12, 18)), (32, (8, 16, 24)), (2, (1,)), (4, (2,)), (16, (5, 10))]
)
def test_memory_layers_of_another_depth(layers: int, memory: tuple[int, ...]) -> None:
    dims = Dims(64, layers, 2, 96, 100, 512)
    assert systems.mask_of(stemma.design("longllama-3b"), dims) == Memory(memory, 256)
    assert systems.mask_of(stemma.design("llama-7b"), dims) == stemma.design("llama-7b").arch.mask


# ---------------------------------------------------------------- Giraffe


def chunked(context: int = 16, overlap: float = 0.5) -> Chunked:
    found = objective(Chunks(overlap), Setting(TOKENIZERS["llama"], families.design("giraffe").text, context, 1))
    assert isinstance(found, Chunked)
    return found


def test_chunks_overlap_by_half_a_context() -> None:
    """As the released script cuts a document: from 0, n/2, n, ... as long as something is left behind the chunk."""
    view, here = some(20, 1, 90), chunked()
    want = []
    for slot in range(20):
        ids = view[here.order(view)[slot][0]].tolist()
        starts = [s for s in range(0, max(1, len(ids) - 8), 8) if len(ids) - s > 1]
        want += [(ids[s : s + 16], ids[s + 1 : s + 17]) for s in starts]
    got = [e for e, _ in take(here, view, len(want))]
    assert len(want) > 60
    for (ids, labels), row in zip(want, got, strict=True):
        assert row["input_ids"].tolist() == ids + [0] * (16 - len(ids))
        assert row["labels"].tolist() == labels + [IGNORED] * (16 - len(labels))
    rows = take(here, view, 50)
    for i in (3, 17, 30):
        assert all(same(a, b) for a, b in zip(rows[i:], take(here, view, 50 - i, rows[i - 1][1]), strict=True))
    assert "documents" not in here.collate(got[:9])


def test_every_token_is_judged_once() -> None:
    view, here = some(20, 1, 90), chunked()
    judged = [e["labels"][e["labels"] != IGNORED] for e, _ in here.examples(view, once=True)]
    assert sum(map(len, judged)) == sum(len(view[i]) for i in range(20)) - here.tokens_without_target(view)
    with pytest.raises(DataError, match="no document has two tokens"):
        take(here, Documents([[7], [8], []]), 1)


SLOW = pytest.mark.slow
BASES = [
    "LinearScaling(factor=4.0)",
    "RandomScaling",
    "XPosScaling",
    pytest.param("XPosScaling(neighbours=true)", marks=SLOW),
    pytest.param("PowerScaling(power=0.5)", marks=SLOW),
    pytest.param("TruncatedScaling(context=64)", marks=SLOW),
    pytest.param("NTKScaling(factor=4.0)", marks=SLOW),
    pytest.param("YarnScaling(factor=4.0, context=64)", marks=SLOW),
]


@pytest.mark.parametrize("basis", BASES)
def test_every_basis_is_a_setting_that_trains(tmp_path: Path, llama: Path, few: str, basis: str) -> None:
    """Twice the context, the basis, half-overlapping chunks; stopping and going on changes nothing."""
    more = {"arch.position.scaling": basis, "recipe.lr": 1e-2}
    run = tune(
        "giraffe", start=str(llama), stage=1, data=few, out=tmp_path / "run", budget="12 steps",
        overrides=more, quiet=True,
    )  # fmt: skip
    assert run.plan.dims.context == 128 and run.plan.context == 128 and run.plan.objective == Chunks(0.5)
    assert run.plan.arch.position == stemma.spec.edit(run.plan.arch, {"position.scaling": basis}).position
    assert run.summary["val"]["loss"] < first_loss(tmp_path / "run") - 0.2
    verify_resume(tmp_path / "run", steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = stemma.load(tmp_path / "run")
    assert there.arch.position == run.plan.arch.position and there.dims.context == 128


@pytest.mark.parametrize(("size", "scaling"), [
    ("giraffe", LinearScaling(4.0)), ("giraffe-v1-13b-scaled-16", LinearScaling(16.0)),
    ("giraffe-v1-13b-truncated", TruncatedScaling(64)), ("giraffe-v1-13b-power", PowerScaling(0.5)),
    ("giraffe-v1-13b-random", RandomScaling()), ("giraffe-v1-13b-xpos", XPosScaling(neighbours=True)),
])  # fmt: skip
def test_the_runs_of_the_paper_have_names(llama: Path, size: str, scaling: Any) -> None:
    plan = systems.resolve(size, str(llama), stage=1)
    assert plan.arch.position.scaling == scaling and plan.train.context == 128 and plan.name == size
    with pytest.raises(UsageError, match="scales rotary positions"):
        systems.position_of(stemma.design(size), stemma.build("gpt2", d_model=16, layers=1, heads=2, d_ff=16, vocab=50))


@pytest.mark.parametrize(
    "basis",
    [
        "LinearScaling(factor=4.0)",
        "YarnScaling(factor=4.0, context=64)",
        pytest.param("DynamicScaling(factor=2.0)", marks=SLOW),
        pytest.param("Llama3Scaling(factor=4.0, context=64)", marks=SLOW),
    ],
)
def test_transformers_reads_the_bases_that_it_has(tmp_path: Path, llama: Path, few: str, basis: str) -> None:
    tune(
        "giraffe", start=str(llama), stage=1, data=few, out=tmp_path / "run", budget="2 steps",
        overrides={"arch.position.scaling": basis}, quiet=True,
    )  # fmt: skip
    ours = stemma.load(tmp_path / "run")
    theirs = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").eval()
    ids = torch.randint(5, ours.dims.vocab, (2, 150), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert (ours(ids).logits - theirs(ids).logits).abs().max() < 1e-5


def test_both_stages_of_giraffe(tmp_path: Path, llama: Path, few: str) -> None:
    """Longer rows on another basis, then an adapter on conversations that keeps both."""
    talks = tmp_path / "talks.jsonl"
    rounds = [{"instruction": "say a", "output": "a b"}, {"instruction": "say c", "output": "c d e"}] * 20
    talks.write_text("".join(json.dumps(row) + "\n" for row in rounds))
    more: dict[str, Any] = {"data": [few, str(talks)], "settings": {"template": "plain"}, "budget": "2 steps"}
    run = tune("giraffe", start=str(llama), out=tmp_path / "run", quiet=True, **more)
    first = stemma.load(tmp_path / "run" / "stages" / "1")
    assert first.arch.position.scaling == LinearScaling(4.0)
    (lora,) = run.plan.rewrites
    assert (lora.alpha, lora.dropout) == (16.0, 0.05) and run.plan.arch.position == first.arch.position
    there = stemma.load(tmp_path / "run")
    assert there.dims.context == 128 and there.arch.position == first.arch.position
    assert [stage.stand_in for stage in systems.stages_of("giraffe")][1] == "builtin:dialogues"


def test_the_python_of_the_page() -> None:
    page = (Path(__file__).parent.parent / "docs/long.md").read_text("utf-8")
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, names)
    assert "row" in names
