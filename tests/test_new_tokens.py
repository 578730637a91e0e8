"""Adapters beside tokens that a template brings: the rows of these tokens learn alone, here and in peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf

import stemma
from stemma.cli import main
from stemma.errors import CheckpointError, UsageError
from stemma.rewrites import LoRA, SoftPrompt, TrainableTokens, merge
from stemma.text import Specials, Tokenizer
from stemma.train import verify_resume
from stemma.tuning import tune
from stemma.tuning.plans import resolve
from test_tune import TALKS, written

NEW = ("<|im_start|>", "<|im_end|>")
MORE: dict[str, Any] = {"quiet": True, "lora": 2, "settings": {"template": "chatml"}, "overrides": {"recipe.lr": 1e-2}}
SIZE: dict[str, Any] = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)


def base(folder: Path, tied: bool = True, room: int = 0) -> tuple[Path, Any]:
    """A LLaMA whose tables have `room` rows more than its tokenizer has ids."""
    words = [text for row in TALKS for turn in row["messages"] for text in [turn["content"]]]
    known = Tokenizer.train("bpe", words, 300, Specials(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>"))
    ids: Any = dict(bos_token_id=known.bos_id, eos_token_id=known.eos_id, pad_token_id=known.pad_id)
    torch.manual_seed(0)
    config = hf.LlamaConfig(**SIZE, vocab_size=known.vocab_size + room, tie_word_embeddings=tied, **ids)
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    known.save(folder)
    return folder, known


def scores(model: Any, known: Any) -> torch.Tensor:
    """The logits of a text that holds the new tokens."""
    ids = torch.tensor([[5, known.vocab_size, 9, 7, known.vocab_size + 1, 12]])
    with torch.no_grad():
        found: torch.Tensor = model.eval()(ids).logits
    return found


@pytest.mark.parametrize(
    ("tied", "room"),
    [(False, 0), (True, 5), *(pytest.param(*two, marks=pytest.mark.slow) for two in ((True, 0), (False, 5)))],
)
def test_a_lora_run_learns_rows_of_new_tokens(
    tied: bool, room: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, known = base(tmp_path / "base", tied, room)
    ids = [known.vocab_size, known.vocab_size + 1]
    data = written(tmp_path / "rows.jsonl", TALKS)
    run = tune("chat", start=str(start), data=data, out=tmp_path / "run", budget="3 steps", **MORE)
    rows = next(r for r in run.plan.rewrites if isinstance(r, TrainableTokens))
    assert rows.ids == tuple(ids) and rows.where == (("embed.tokens",) if tied else ("embed.tokens", "lm"))
    old = stemma.load(start)
    mean = old.embed.tokens.weight[: known.vocab_size].mean(0)
    own = run.model.embed.tokens.own
    assert 0 < (own - mean).abs().max() < 0.1 and not torch.equal(own[0], own[1]), "from the mean on they learnt"
    config = json.loads((tmp_path / "run/model/adapter_config.json").read_text())
    modules = ["model.embed_tokens"] if tied else ["lm_head", "model.embed_tokens"]
    assert {m: config["trainable_token_indices"][m] for m in modules} == dict.fromkeys(modules, ids)

    want = scores(run.model, known)
    model = stemma.load(start, adapter=run.directory)
    assert torch.equal(scores(model, known), want) and torch.equal(scores(stemma.load(run.directory), known), want)
    assert [model.tokenizer.id(name) for name in NEW] == ids and model.dims.vocab == max(max(ids) + 1, old.dims.vocab)
    theirs: Any = hf.LlamaForCausalLM.from_pretrained(start)
    if not room:
        theirs.resize_token_embeddings(known.vocab_size + 2)
    theirs = peft.PeftModel.from_pretrained(theirs, str(run.directory / "model"))
    assert torch.allclose(scores(theirs, known), want, atol=1e-5)
    merge(model).save(tmp_path / "merged")
    again = stemma.load(tmp_path / "merged")
    assert torch.allclose(scores(again, known), want, atol=1e-5)
    assert again.tokenizer.encode(NEW[0], allow_special=True, add_special=False) == ids[:1]
    with pytest.raises(SystemExit):
        main(["merge", str(start), "--adapter", str(run.directory), "--out", str(tmp_path / "out")])
    assert torch.equal(scores(stemma.load(tmp_path / "out"), known), scores(again, known))
    with pytest.raises(SystemExit):
        main(["generate", str(run.directory), "a", "--tokens", "3"])
    assert len(capsys.readouterr().out) > 1


def test_such_a_run_resumes_and_may_be_quantised(tmp_path: Path) -> None:
    """In 4 bits the base is read as ever, without a copy in full; a resumed run ends where an unbroken one does."""
    start, known = base(tmp_path / "base")
    data = written(tmp_path / "rows.jsonl", TALKS)
    run = tune("chat", start=str(start), data=data, out=tmp_path / "run", budget="3 steps", quantize="nf4", **MORE)
    verify_resume(run.directory, 4)
    small = stemma.load(start, adapter=run.directory, quantize="nf4")
    assert torch.equal(scores(small, known), scores(run.model, known))
    assert not torch.equal(scores(stemma.load(run.directory), known), scores(small, known))


def test_rows_that_were_named_stay(tmp_path: Path) -> None:
    start, known = base(tmp_path / "base")
    data = written(tmp_path / "rows.jsonl", TALKS)
    more = {"settings": {"template": "chatml"}, "rewrites": (TrainableTokens((3,)), LoRA(("*.attention.q",)))}
    plan = resolve("chat", str(start), data, **more)  # type: ignore[arg-type]
    ids = (3, known.vocab_size, known.vocab_size + 1)
    assert [r for r in plan.rewrites if isinstance(r, TrainableTokens)] == [TrainableTokens(ids)]


def test_delimiters_of_a_head_learn_beside_an_adapter(tmp_path: Path) -> None:
    start, known = base(tmp_path / "base")
    films = [{"text": f"film {i}", "label": i % 2} for i in range(40)]
    data = written(tmp_path / "films.jsonl", films)
    changes = {"objective.task.delimiters": ["<start>", "<between>", "<extract>"]}
    run = tune("classify", start=str(start), data=data, out=tmp_path / "run", budget="2 steps", lora=2, quiet=True, overrides=changes)  # fmt: skip
    model = stemma.load(start, adapter=run.directory)
    assert model.tokenizer.id("<extract>") == known.vocab_size + 2
    assert torch.equal(scores(model, known), scores(run.model, known))
    assert "error" not in stemma.predict(run.directory, ["film 3"])[0]


def test_what_an_adapters_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    start, known = base(tmp_path / "base")
    data = written(tmp_path / "rows.jsonl", TALKS)
    prompt = {"settings": {"template": "chatml"}, "rewrites": (SoftPrompt(length=2),)}
    with pytest.raises(UsageError, match=r"template chatml has tokens that .* lacks \(<\|im_start\|>, <\|im_end\|>\)"):
        resolve("chat", str(start), data, **prompt)  # type: ignore[arg-type]
    run = tune("chat", start=str(start), data=data, out=tmp_path / "run", budget="1 steps", **MORE)
    torch.manual_seed(0)
    hf.LlamaForCausalLM(hf.LlamaConfig(**SIZE, vocab_size=known.vocab_size - 3)).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="so 5 are missing: it is not the adapter's base"):
        stemma.load(tmp_path / "other", adapter=run.directory)


def test_a_base_that_lost_its_tokenizer(tmp_path: Path) -> None:
    """Rows of new tokens begin as the mean of those that it knows; a run without such rows does not ask."""
    start, _ = base(tmp_path / "base")
    data = written(tmp_path / "rows.jsonl", TALKS)
    for name, template in (("new", "chatml"), ("old", "plain")):
        more = MORE | {"settings": {"template": template}}
        run = tune("chat", start=str(start), data=data, out=tmp_path / name, budget="1 steps", **more)
        assert run.finished
    for file in start.glob("tokenizer*"):
        file.unlink()
    verify_resume(tmp_path / "old", 2)
    with pytest.raises(CheckpointError, match="has no tokenizer any more, and the run learns rows of tokens"):
        verify_resume(tmp_path / "new", 2)


def test_nothing_begins_from_an_adapter(tmp_path: Path) -> None:
    """What cannot begin is refused before anything is learnt, with the cure."""
    start, _ = base(tmp_path / "base")
    data = written(tmp_path / "rows.jsonl", TALKS)
    tune("chat", start=str(start), data=data, out=tmp_path / "run", budget="1 steps", **MORE)
    with pytest.raises(UsageError, match=r"is an adapter, and tuning begins from a whole model: `stemma merge .*base"):
        resolve("chat", str(tmp_path / "run"), data)
    with pytest.raises(UsageError, match="orca has several stages"):
        tune("orca", start=str(start), out=tmp_path / "orca", lora=2, quiet=True)
    assert not (tmp_path / "orca").exists()
