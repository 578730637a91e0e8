"""Adapters that were tuned with a head for a task, beside their base: the head, its labels, its predictions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import stemma
from stemma.cli import main
from stemma.errors import CheckpointError
from stemma.rewrites import merge
from stemma.text import Specials, Tokenizer
from stemma.tuning import tune

GOOD, BAD = ["good", "great", "lovely"], ["bad", "poor", "awful"]
FILMS = [
    {
        "text": f"the film {i} is {random.Random(i).choice(GOOD if i % 2 else BAD)}",
        "label": ["neg", "odd", "pos"][i % 3],
    }
    for i in range(60)
]
MANY = [{"text": row["text"], "label": [["long"], ["long", "dull"], []][i % 3]} for i, row in enumerate(FILMS)]
TAGS = [{"words": ["a", "film", str(i)], "tags": ["O", "B-X", ["O", "I-X"][i % 2]]} for i in range(40)]
SPANS = [
    {"question": "how is it", "context": f"it is {w}", "answers": {"text": [w], "answer_start": [6]}} for w in GOOD * 10
]
CHOICES = [{"text": "the film", "choices": ["is good", "is bad"], "label": i % 2} for i in range(40)]
NUMBERS = [{"text": row["text"], "label": i / 10} for i, row in enumerate(FILMS)]
ROWS: dict[str, list[Any]] = {
    "classify": FILMS, "several": MANY, "tag": TAGS, "answer": SPANS, "choose": CHOICES, "regress": NUMBERS,
}  # fmt: skip
IDS = torch.tensor([[5, 9, 12, 7, 20, 2]])
OFF = dict(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)


def base(kind: str, folder: Path) -> Path:
    """A small model without a head for a task."""
    texts = [row["text"] for row in FILMS]
    names = Specials(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>", mask="<mask>", cls="<s>", sep="</s>")
    tokenizer = Tokenizer.train("bpe", texts, 300, names)
    size = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
    vocab: Any = dict(
        vocab_size=tokenizer.vocab_size,
        pad_token_id=tokenizer.pad_id,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
    )
    torch.manual_seed(0)
    model: Any
    match kind:
        case "bert":
            model = hf.BertForMaskedLM(hf.BertConfig(**size, **vocab))
        case "pooled":
            model = hf.BertForPreTraining(hf.BertConfig(**size, **vocab))
        case "gpt2":
            model = hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=24, n_layer=2, n_head=4, n_positions=64, **OFF, **vocab))
        case "llama":
            model = hf.LlamaForCausalLM(hf.LlamaConfig(**size, **vocab, num_key_value_heads=2))
        case "t5":
            vocab |= {"decoder_start_token_id": tokenizer.pad_id}
            sizes = dict(d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3)
            model = hf.T5ForConditionalGeneration(hf.T5Config(**sizes, **vocab))
    model.save_pretrained(folder / kind)
    tokenizer.save(folder / kind)
    return folder / kind


def tuned(kind: str, what: str, folder: Path) -> tuple[Path, Any]:
    start = base(kind, folder)
    data = folder / f"{what}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[what]))
    changes = {"recipe.lr": 2e-2, "train.val_fraction": 0.2}
    word = "classify" if what == "several" else what
    run = tune(word, start=str(start), data=str(data), out=folder / "run", budget="3 steps", lora=2, quiet=True, overrides=changes)  # fmt: skip
    return start, run


def same(a: Any, b: Any) -> bool:
    """Whether two models give the same scores, bit for bit."""
    with torch.no_grad():
        found, expected = a.eval()(IDS), b.eval()(IDS)
    return torch.equal(found.logits, expected.logits)


def test_a_base_and_an_adapter_with_a_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, run = tuned("bert", "classify", tmp_path)
    model = stemma.load(start, adapter=run.directory)
    assert same(model, run.model) and same(stemma.load(run.directory), run.model)
    assert model.labels == ("neg", "odd", "pos") and model.lm is None
    texts = ["the film 7 is great", "a film"]
    said = stemma.predict(run.directory, texts)
    assert [*said[0]["scores"]] == ["neg", "odd", "pos"]
    with pytest.raises(SystemExit):
        main(["predict", str(start), *texts, "--adapter", str(run.directory), "--json"])
    assert [json.loads(line)["scores"] for line in capsys.readouterr().out.splitlines()] == [s["scores"] for s in said]

    theirs = hf.AutoModelForSequenceClassification.from_pretrained(start, num_labels=3)
    theirs = peft.PeftModel.from_pretrained(theirs, run.directory / "model").eval()
    with torch.no_grad():
        assert torch.allclose(theirs(IDS).logits, model(IDS).logits, atol=1e-5)
    merge(stemma.load(start, adapter=run.directory)).save(tmp_path / "merged")
    whole = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert whole.config.id2label == {0: "neg", 1: "odd", 2: "pos"}
    with torch.no_grad():
        assert torch.allclose(whole.eval()(IDS).logits, model(IDS).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("gpt2", "classify"),
        pytest.param("bert", "several", marks=pytest.mark.slow),
        pytest.param("bert", "tag", marks=pytest.mark.slow),
        pytest.param("bert", "answer", marks=pytest.mark.slow),
        ("bert", "choose"),
        pytest.param("bert", "regress", marks=pytest.mark.slow),
        pytest.param("llama", "regress", marks=pytest.mark.slow),
        pytest.param("t5", "classify", marks=pytest.mark.slow),
    ],
)
def test_heads_of_all_kinds_come_back(kind: str, what: str, tmp_path: Path) -> None:
    start, run = tuned(kind, what, tmp_path)
    model = stemma.load(start, adapter=run.directory)
    assert model.arch == run.model.arch and model.labels == run.model.labels
    with torch.no_grad():
        found, wanted = model(IDS), run.model.eval()(IDS)
    name = "start_logits" if what == "answer" else "logits"
    assert torch.allclose(getattr(found, name), getattr(wanted, name), atol=1e-6)
    assert all(torch.equal(p, run.model.get_parameter(f"task.{name}")) for name, p in model.task.named_parameters())
    assert "error" not in stemma.predict(run.directory, ROWS[what][:1])[0]


def test_a_base_in_gguf(tmp_path: Path) -> None:
    start = base("llama", tmp_path)
    stemma.load(start).save(tmp_path / "base.gguf")
    data = tmp_path / "films.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in FILMS))
    run = tune("classify", start=str(tmp_path / "base.gguf"), data=str(data), out=tmp_path / "run", budget="3 steps", lora=2, quiet=True)  # fmt: skip
    model = stemma.load(tmp_path / "base.gguf", adapter=run.directory)
    assert same(model, run.model) and model.labels == ("neg", "odd", "pos")
    small = stemma.load(tmp_path / "base.gguf", adapter=run.directory, quantize="nf4")
    assert small.labels == model.labels and not same(small, model)
    assert stemma.predict(run.directory, ["the film 7 is great"])[0]["label"] in model.labels


def test_directories_that_peft_wrote(tmp_path: Path) -> None:
    """They do not name the labels; their number is that of the head's rows."""
    start = base("pooled", tmp_path)
    for count in (1, 3):
        theirs: Any = hf.AutoModelForSequenceClassification.from_pretrained(start, num_labels=count)
        theirs = peft.get_peft_model(theirs, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])).eval()
        theirs.save_pretrained(tmp_path / "adapter")
        model = stemma.load(start, adapter=tmp_path / "adapter")
        assert model.labels == () and model.arch.heads.task.problem == ("single" if count > 1 else "regression")
        with torch.no_grad():
            assert torch.allclose(theirs(IDS).logits, model(IDS).logits, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"holds no 'bert\.pooler\.dense\.weight'"):
        stemma.load(base("bert", tmp_path), adapter=tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({k: t for k, t in load_file(weights).items() if "classifier.bias" not in k}, weights)
    with pytest.raises(CheckpointError, match=r"holds no 'classifier\.bias': load the base with its head"):
        stemma.load(start, adapter=tmp_path / "adapter")


@pytest.mark.slow
def test_a_new_head_takes_the_place_of_the_bases_own(tmp_path: Path) -> None:
    _, run = tuned("bert", "classify", tmp_path)
    merge(stemma.load(run.directory)).save(tmp_path / "three")
    data = tmp_path / "two.jsonl"
    data.write_text("".join(json.dumps(row | {"label": i % 2}) + "\n" for i, row in enumerate(FILMS)))
    more: Any = {"lora": 2, "quiet": True, "budget": "3 steps", "overrides": {"train.new": ["task"]}}
    two = tune("classify", start=str(tmp_path / "three"), data=str(data), out=tmp_path / "second", **more)
    model = stemma.load(tmp_path / "three", adapter=two.directory)
    assert same(model, two.model) and model.labels == ("0", "1")
    assert stemma.load(tmp_path / "three").labels == ("neg", "odd", "pos")


def test_a_kept_task_that_does_not_fit_its_head_is_refused(tmp_path: Path) -> None:
    _, run = tuned("bert", "classify", tmp_path)
    kept, whole = run.directory / "model" / "task.json", tmp_path / "whole"
    merge(stemma.load(run.directory)).save(whole)
    task = json.loads(kept.read_text())
    for change, why in (
        ({"labels": ["neg", "odd"]}, "names 2 labels, and its head has 3"),
        ({"labels": []}, "names 0 labels, and its head has 3"),
        ({"kind": "TagTask"}, "holds no task"),
    ):
        for model in (run.directory, whole):
            (kept if model == run.directory else whole / "task.json").write_text(json.dumps(task | change))
            with pytest.raises(CheckpointError, match=why):
                stemma.predict(model, ["the film"])
