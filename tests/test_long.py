"""Systems of long rows, and the documents that stand in for theirs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers as hf

import stemma
from reference.longllama import LongLlama
from stemma.data import read
from stemma.declare.objectives import CrossBatch
from stemma.nn.parts import Dims, Memory
from stemma.samples import lookups
from stemma.text import Tokenizer
from stemma.train import verify_resume
from stemma.tuning import systems, tune
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


def test_longllama_from_a_llama(tmp_path: Path, llama: Path) -> None:
    """One command: the memory mask, the paper's objective, rate and decay; what comes out is read by the reference."""
    run = tune(
        "longllama", start=str(llama), data="builtin:lookups", out=tmp_path / "run", budget="3 steps", quiet=True
    )
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
    ids = torch.randint(
        5, plan.dims.vocab, (2 * plan.context + 9,), generator=torch.Generator().manual_seed(4)
    ).tolist()
    with torch.no_grad():
        assert (model.eval()(torch.tensor([ids])).logits[0] - judge.prompt(ids)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("layers", "memory"), [(26, (6, 12, 18)), (32, (8, 16, 24)), (2, (1,)), (4, (2,)), (16, (5, 10))]
)
def test_memory_layers_of_another_depth(layers: int, memory: tuple[int, ...]) -> None:
    dims = Dims(64, layers, 2, 96, 100, 512)
    assert systems.mask_of(stemma.design("longllama-3b"), dims) == Memory(memory, 256)
    assert systems.mask_of(stemma.design("llama-7b"), dims) == stemma.design("llama-7b").arch.mask


def test_the_python_of_the_page() -> None:
    page = (Path(__file__).parent.parent / "docs/long.md").read_text("utf-8")
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, names)
    assert "row" in names
