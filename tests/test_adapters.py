"""LoRA and DoRA: equal to peft in logits, loss and gradients, and its directories both ways."""

# ruff: noqa: F811

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import stemma
from stemma import formats
from stemma.cli import root
from stemma.declare.recipes import Rate
from stemma.errors import CheckpointError, UsageError
from stemma.nn.model import Model
from stemma.quantize import native
from stemma.rewrites import NF4, LoRA, Trainable, apply, merge, undo
from stemma.rewrites.adapters import as_stored, layers, names, use, without
from stemma.rewrites.frozen import note
from stemma.rewrites.lora import LoRALinear
from stemma.text import Specials, Tokenizer
from stemma.train import verify_resume
from test_train import text, train  # noqa: F401

VOCAB = 83
SMALL: dict[str, Any] = dict(
    hidden_size=36, num_hidden_layers=2, num_attention_heads=6, intermediate_size=50, vocab_size=VOCAB
)


def bert() -> nn.Module:
    return hf.BertForMaskedLM(hf.BertConfig(**SMALL, hidden_dropout_prob=0, attention_probs_dropout_prob=0))


def gpt2() -> nn.Module:
    sizes = dict(vocab_size=VOCAB, n_embd=36, n_layer=2, n_head=6, n_positions=40, bos_token_id=0, eos_token_id=0)
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0))


def llama() -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, num_key_value_heads=2))


def t5() -> nn.Module:
    sizes = dict(vocab_size=VOCAB, d_model=36, d_kv=6, d_ff=50, num_layers=2, num_heads=6, decoder_start_token_id=0)
    return hf.T5ForConditionalGeneration(hf.T5Config(**sizes, dropout_rate=0))


# attention of the publisher in parts, packed and transposed, with grouped heads, and in two stacks
MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "bert": (bert, ["query", "value", "dense"]),
    "gpt2": (gpt2, ["c_attn", "c_fc", "c_proj"]),
    "llama": (llama, "all-linear"),
    "t5": (t5, ["q", "k", "v", "o", "wi"]),
}
KINDS: dict[str, dict[str, Any]] = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
CASES = [
    pytest.param(name, kind, marks=() if kind == "lora" or name == "gpt2" else pytest.mark.slow)
    for name in MODELS
    for kind in KINDS
]


def jittered(model: nn.Module, only: str = "") -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if only in name:
                p.add_(torch.randn(p.shape, generator=generator).to(p) * 0.1)
    return model


def theirs(name: str, folder: Path, config: dict[str, Any]) -> Any:
    """A model of peft with a random adapter, saved as `base` and `adapter` in the folder."""
    make, targets = MODELS[name]
    torch.manual_seed(0)
    base = jittered(make()).eval()
    base.save_pretrained(folder / "base")  # type: ignore[operator]
    settings = peft.LoraConfig(
        **({"r": 4, "lora_alpha": 7, "target_modules": targets, "fan_in_fan_out": name == "gpt2"} | config)
    )
    model = jittered(peft.get_peft_model(base, settings), only="lora_").eval()  # type: ignore[arg-type]
    model.save_pretrained(folder / "adapter")  # type: ignore[operator]
    return model


def moved(model: Model) -> Model:
    """Its adapters off zero."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for layer in layers(model):
            layer.up.add_(torch.randn(layer.up.shape, generator=generator) * 0.1)
    return model


def batch() -> dict[str, Tensor]:
    ids = torch.randint(3, VOCAB, (2, 11), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids.clone()}


def base_of(name: str, folder: Path) -> Any:
    kinds = {"bert": hf.BertForMaskedLM, "gpt2": hf.GPT2LMHeadModel, "llama": hf.LlamaForCausalLM}
    return kinds.get(name, hf.T5ForConditionalGeneration).from_pretrained(folder / "base").eval()


def near(a: Tensor, b: Tensor, within: float = 1e-5) -> bool:
    return bool((a - b).abs().max() < within)


# ---------------------------------------------------------------- against peft


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_it_is_the_function_that_peft_computes(name: str, kind: str, tmp_path: Path) -> None:
    """Logits, loss and gradients of its directory here, and of ours there."""
    reference = theirs(name, tmp_path, KINDS[kind])
    model = stemma.load(tmp_path / "base", adapter=tmp_path / "adapter")
    expected, found = reference(**batch()), model(**batch())
    assert near(found.logits, expected.logits) and near(found.loss, expected.loss)
    model.save(str(tmp_path / "ours"), layout="peft")
    written, read = (load_file(tmp_path / d / "adapter_model.safetensors") for d in ("ours", "adapter"))
    assert written.keys() == read.keys() and all(torch.equal(written[k], t) for k, t in read.items())
    there = peft.PeftModel.from_pretrained(base_of(name, tmp_path), str(tmp_path / "ours")).eval()
    assert near(there(**batch()).logits, found.logits)

    expected.loss.backward()
    found.loss.backward()
    learns = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learns and all(n.rpartition(".")[2] in ("up", "length") or n.endswith("down.weight") for n in learns)
    with torch.no_grad():  # the gradients in the weights' places, so that the table names them
        for p in model.parameters():
            if p.grad is not None:
                p.copy_(p.grad)
    model.save(str(tmp_path / "gradients"), layout="peft")
    gradients = load_file(tmp_path / "gradients" / "adapter_model.safetensors")
    for n, p in reference.named_parameters():
        if p.requires_grad:
            key = n.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector")
            assert near(gradients.pop(key), p.grad), n
    assert not gradients


def test_other_ranks_biases_and_whole_modules_come_and_go(tmp_path: Path) -> None:
    reference = theirs(
        "bert",
        tmp_path,
        {
            "target_modules": ["query", "value"], "bias": "lora_only", "modules_to_save": ["transform"],
            "rank_pattern": {"value": 2, "layer.1.attention.self.query": 3}, "alpha_pattern": {"value": 5},
        },
    )  # fmt: skip
    with torch.no_grad():
        for p in reference.parameters():
            if p.requires_grad:
                p.add_(0.05)
    reference.save_pretrained(tmp_path / "adapter")
    model = stemma.load(tmp_path / "base", adapter=tmp_path / "adapter")
    expected = reference(**batch()).logits
    assert near(model(**batch()).logits, expected)
    assert {r.rank for r in model.rewrites if isinstance(r, LoRA)} == {4, 3, 2}
    model.save(str(tmp_path / "ours"), layout="peft")
    there = peft.PeftModel.from_pretrained(base_of("bert", tmp_path), str(tmp_path / "ours")).eval()
    assert near(there(**batch()).logits, expected)
    plain = stemma.load(tmp_path / "base")
    assert not near(plain(**batch()).logits, expected, 1e-3)


def test_parts_of_a_packed_matrix_are_written_with_the_rank_of_all(tmp_path: Path) -> None:
    """GPT-2's queries and values with a matrix A each: one adapter of twice the rank beside its packed matrix."""
    theirs("gpt2", tmp_path, {})
    model = stemma.load(tmp_path / "base", rewrites=(LoRA(("*.attention.[qv]",), 3, 5.0), LoRA(("*.mlp.up",), 3, 5.0)))
    moved(model)
    model.save(str(tmp_path / "ours"), layout="peft")
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["r"] in (3, 6) and set(config["rank_pattern"].values()) <= {3, 6} and config["fan_in_fan_out"]
    there = peft.PeftModel.from_pretrained(base_of("gpt2", tmp_path), str(tmp_path / "ours")).eval()
    expected = model(**batch()).logits
    assert near(there(**batch()).logits, expected)
    again = stemma.load(tmp_path / "base", adapter=tmp_path / "ours")
    assert near(again(**batch()).logits, expected)


def test_packing_by_head_goes_both_ways(tmp_path: Path) -> None:
    """GLM's q, k and v, which peft has no class for."""
    model = jittered(stemma.build("chatglm2", layers=2, d_model=32, heads=4, kv_heads=2, d_ff=48, vocab=VOCAB))
    model.save(str(tmp_path / "base"))  # type: ignore[operator]
    where = ("*.attention.[qkv]",)
    model = stemma.load(tmp_path / "base", rewrites=(LoRA(where, 2, share=("q", "k", "v"), dora=True),))
    moved(model)
    model.save(str(tmp_path / "adapter"), layout="peft")
    again = stemma.load(tmp_path / "base", adapter=tmp_path / "adapter")
    assert torch.equal(again(**batch()).logits, model(**batch()).logits)


# ---------------------------------------------------------------- a model's adapters


def made(*rewrites: Any, name: str = "llama", **changes: Any) -> Model:
    model = stemma.build(name, layers=2, d_model=32, heads=4, d_ff=48, vocab=VOCAB, **changes)
    apply(jittered(model), rewrites)  # type: ignore[arg-type]
    return moved(model)


def logits(model: Model) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(batch()["input_ids"]).logits
    return found


@pytest.mark.parametrize("dora", [False, True])
def test_merged_is_unmerged(dora: bool) -> None:
    model = made(LoRA(("*.attention.*",), 4, dora=dora), LoRA(("*.mlp.*",), 2, name="second", rslora=True))
    before = logits(model)
    deltas = {layer: layer.base_weight + layer.delta() for layer in layers(model)}
    weights = {id(layer): layer.merge().weight for layer in layers(model)}
    if not dora:
        assert all(torch.equal(weights[id(layer)], wide) for layer, wide in deltas.items())  # exact in fp32
    assert near(logits(merge(model)), before) and model.rewrites == ()


def test_several_adapters_mix_and_go(tmp_path: Path) -> None:
    model = made(LoRA(("*.attention.[qv]",), 2, name="a"), LoRA(("*.attention.[qv]",), 3, name="b"))
    both, plain = logits(model), logits(undo(copy.deepcopy(model)))
    assert names(model) == ["a", "b"]
    with without(model):
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), both)
    for name in "ab":
        formats.peft.save(model, tmp_path / name, name=name)
    alone = logits(use(model, "a"))
    use(model, {"a": 0.5, "b": 0.25})
    assert near(logits(merge(copy.deepcopy(model))), logits(model))
    undo(model).save(str(tmp_path / "base"))
    loaded = stemma.load(tmp_path / "base", adapter=[tmp_path / "a", tmp_path / "b"])
    assert names(loaded) == ["default", "b"] and near(logits(loaded), both)
    assert near(logits(use(loaded, "default")), alone)
    with pytest.raises(UsageError, match="no adapter 'c'; it has default, b"):
        use(loaded, "c")
    with pytest.raises(UsageError, match="default, b: name one"):
        formats.peft.save(loaded, tmp_path / "which")


def test_adapters_of_half_precision_models_are_fp32_and_move() -> None:
    """In bf16 a step of 1e-5 on a weight near 0.1 would be rounded away."""
    model = made(LoRA(("*.attention.q",), 4), dtype="bfloat16").train()
    own = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in own} == {torch.float32} and model.dtype == torch.bfloat16
    before = [p.detach().clone() for p in own]
    out = model(**batch())
    assert out.logits.dtype == torch.bfloat16
    out.loss.backward()
    torch.optim.SGD(own, lr=1e-5).step()
    assert all(not torch.equal(p, old) for p, old in zip(own, before, strict=True))


def test_dropout_is_for_training_alone() -> None:
    for dora in (False, True):
        model = made(LoRA(("*.mlp.*",), 4, dropout=0.5, dora=dora))
        a, b = logits(model), logits(model)
        assert torch.equal(a, b)
        assert not torch.equal(logits(model.train()), logits(model))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_beside_a_quantised_base(kind: str, tmp_path: Path) -> None:
    plain = made(LoRA(("*.blocks.*",), 2))
    undo(plain).save(str(tmp_path / "base"))
    model = stemma.load(tmp_path / "base", quantize=kind, rewrites=(LoRA(("*.attention.*",), 2),))
    moved(model)
    loss = model.train()(**batch()).loss
    loss.backward()
    grads = {n for n, p in model.named_parameters() if p.grad is not None}
    assert grads == {n for n, p in model.named_parameters() if p.requires_grad} and len(grads) == 16
    model.eval()
    model.save(str(tmp_path / "adapter"), layout="peft")
    again = stemma.load(tmp_path / "base", quantize=kind, adapter=tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))
    assert stemma.load(tmp_path / "adapter").rewrites[0].rank == 2  # finds its base
    assert near(logits(merge(model)), logits(again))
    with pytest.raises(
        UsageError, match="quantize='nf5' is not known; use nf4, int8, q8_0, q4_0, q4_1, keep; did you mean 'nf4'"
    ):
        stemma.load(tmp_path / "base", quantize="nf5")


def test_a_quantised_base_is_computed_with_as_its_weights_are() -> None:
    """Forward and backward, and the backward pass keeps no weight that was made of codes."""
    torch.manual_seed(0)
    model = made()
    wide = copy.deepcopy(model)
    apply(model, (NF4(("*.mlp.*",)), LoRA(("*.attention.q",), 2)))
    apply(wide, (NF4(("*.mlp.*",)),))
    merge(wide)
    apply(wide, (LoRA(("*.attention.q",), 2),))
    with torch.no_grad():
        for ours, theirs in zip(layers(model), layers(wide), strict=True):
            theirs.down.weight.copy_(ours.down.weight)
    held: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (held.append(t.numel() * t.element_size()), t)[1], lambda t: t
    ):
        loss = model.train()(**batch()).loss
    kept = sum(held)
    held.clear()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (held.append(t.numel() * t.element_size()), t)[1], lambda t: t
    ):
        other = wide.train()(**batch()).loss
    assert torch.equal(loss, other) and kept <= sum(held)
    loss.backward()
    other.backward()
    a, b = ({n: p.grad for n, p in m.named_parameters() if p.grad is not None} for m in (model, wide))
    assert a.keys() == b.keys() and all(near(g, b[n], 1e-7) for n, g in a.items())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_decoding_of_a_quantised_base(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels give what plain products give, within fp32 rounding; under autograd the same bits."""
    stemma.build("llama", layers=2, d_model=64, heads=4, d_ff=128, vocab=90).save(str(tmp_path))
    model = stemma.load(tmp_path, quantize=kind)
    ids = torch.arange(3, 7)[None]
    if native.kernels() is None:
        pytest.skip(native.how())
    with torch.no_grad():
        quick = model(ids).logits
    graph = model(ids).logits.detach()
    text = stemma.generate(model, [[3, 4]], max_new_tokens=8)[0].ids
    assert str(note(model)).startswith("matrices: 14 in ") and "by kernels" in str(note(model))
    monkeypatch.setattr(native, "kernels", lambda: None)
    assert not torch.equal(model(ids).logits, quick) and near(model(ids).logits, quick)
    assert torch.equal(model(ids).logits, graph)
    assert stemma.generate(model, [[3, 4]], max_new_tokens=8)[0].ids == text
    assert "in plain PyTorch" in str(note(model)) and note(undo(model)) is None


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("base", ["whole", "nf4"])
def test_a_run_keeps_its_adapter_alone(base: str, text: Path, tmp_path: Path) -> None:
    """Its model folder is a PEFT directory, its checkpoints hold what learns, and it goes on exactly."""
    first = train("llama", tmp_path / "first", text, 2)
    adapter = LoRA(("*.attention.*",), 4, dropout=0.1)
    edits = {
        "train.start": str(first.directory),
        "rewrites": (adapter,) if base == "whole" else (NF4(("*.mlp.*",)), adapter),
        "recipe.lr": 1e-2,
        "recipe.rates": (Rate(("*.up",), 4.0),),  # LoRA+
        "train.save_every": 2,
    }
    run = train("llama", tmp_path / "run", text, 4, edits)
    files = sorted(p.name for p in (run.directory / "model").iterdir())
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files) and "model.safetensors" not in files
    held = load_file(next((run.directory / "checkpoints").glob("*/model.safetensors")))
    assert held and all(name.endswith(("down.weight", "up")) for name in held)
    loaded = stemma.load(run.directory)
    config = json.loads((run.directory / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(first.directory / "model") and loaded.tokenizer is not None
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        start = stemma.load(first.directory)(ids).logits
        found = loaded(ids).logits
        assert not near(found, start, 1e-4)
        if base == "whole":
            assert torch.equal(found, run.model(ids).logits)
    verify_resume(run.directory)


def test_the_page_s_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs/adapters.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    model = made()
    model.save("base")
    model = stemma.load("base", rewrites=(LoRA(("*.attention.q",), 2),))
    model.save("adapter", layout="peft")
    for name in ("load", "nf4"):
        code = page.partition(f"<!-- {name} -->\n```python\n")[2].partition("```\n<!-- /")[0]
        assert "stemma" in code
        exec(code.replace("4096", "256"), {})
    assert near(logits(stemma.load("merged")), logits(stemma.load("adapter")))


def test_the_command_line_loads_and_merges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ran(*args: str) -> str:
        root.main(args=list(args), prog_name="stemma", standalone_mode=False)
        return capsys.readouterr().out

    tokenizer = Tokenizer.train("bpe", ["a leaf on a branch of a tree " * 30], 270, Specials(eos="</s>"))
    plain = stemma.build("llama", layers=2, d_model=32, heads=4, d_ff=48, vocab=tokenizer.vocab_size)
    plain.tokenizer = tokenizer
    base, one, two = (str(tmp_path / d) for d in ("base", "one", "two"))
    plain.save(base)
    for out, seed in ((one, 1), (two, 2)):
        model = stemma.load(base, rewrites=(LoRA(("*.attention.*",), 2),))
        torch.manual_seed(seed)
        for layer in layers(model):
            torch.nn.init.normal_(layer.up, std=0.3)
        model.save(out, layout="peft")
    ids = torch.arange(3, 20)[None]
    out = str(tmp_path / "merged")
    said = ran("merge", base, "--adapter", one, "--adapter", two, "--weight", "0.5", "--weight", "0.25", "--out", out)
    assert "2 adapters (default x 0.5, two x 0.25), float32" in said and "by 0.00%" in said
    mixed = use(stemma.load(base, adapter=[one, two]), {"default": 0.5, "two": 0.25})
    assert near(stemma.load(out)(ids).logits, mixed(ids).logits)
    half = ran(
        "merge", base, "--adapter", one, "--out", str(tmp_path / "half"), "--dtype", "bfloat16", "--quantize", "nf4"
    )
    assert "1 adapter, bfloat16" in half and 0 < float(half.split("by ")[1].rstrip("%\n")) < 5
    whole = stemma.load(base, quantize="nf4", adapter=one)(ids).logits
    assert near(stemma.load(tmp_path / "half")(ids).logits, whole, 0.05 * float(whole.detach().abs().max()))
    again = str(tmp_path / "again")
    ran("merge", out, "--adapter", two, "--weight", "-0.25", "--out", str(tmp_path / "less"))
    ran("merge", str(tmp_path / "less"), "--adapter", one, "--weight", "-0.5", "--out", again)
    assert near(stemma.load(again)(ids).logits, plain(ids).logits)  # unmerged
    told = [
        ran("generate", base, "a leaf", "--json", *more)
        for more in ((), ("--adapter", one), ("--adapter", one, "--quantize", "nf4"))
    ]
    assert told[0] != told[1] and json.loads(ran("generate", one, "a leaf", "--json")) == json.loads(told[1])
    with pytest.raises(UsageError, match="1 --adapter and 2 --weight"):
        ran("merge", base, "--adapter", one, "--weight", "1", "--weight", "2", "--out", again)
    with pytest.raises(UsageError, match="is not empty; choose another --out"):
        ran("merge", base, "--adapter", one, "--out", again)


def test_an_adapter_is_not_rounded_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A merge of a 4-bit base keeps what is added, however small; into 4 bits again it is said to be lost, and is."""
    base, adapter = str(tmp_path / "base"), str(tmp_path / "adapter")
    stemma.build("llama", layers=2, d_model=64, heads=4, d_ff=96, vocab=90).save(base)
    model = stemma.load(base, quantize="nf4", rewrites=(LoRA(("*.attention.*",), 2),))
    torch.manual_seed(0)
    for layer in layers(model):
        torch.nn.init.normal_(layer.up, std=2e-4)
    model.save(adapter, layout="peft")
    ids = torch.arange(3, 20)[None]

    def merged(*args: str) -> tuple[torch.Tensor, str]:
        command = ["merge", base, "--adapter", adapter, "--quantize", "nf4", "--out", str(tmp_path / "out"), "--force"]
        root.main(args=[*command, *args], prog_name="stemma", standalone_mode=False)
        made = stemma.load(tmp_path / "out")
        return dict(made.named_parameters())["decoder.blocks.1.attention.q.weight"].detach(), capsys.readouterr().out

    with torch.no_grad():
        alone = undo(stemma.load(base, quantize="nf4")).decoder.blocks[1].attention.q.weight
        layer = model.decoder.blocks[1].attention.q
        assert torch.equal(alone, layer.base_weight) and 0 < layer.delta().abs().max() < 0.03 * alone.abs().max()
        whole, said = merged()
        assert near(whole - alone, layer.delta(), 1e-7) and "by 0.00%" in said
        rounded, said = merged("--into", "nf4")
    lost = float(said.split("by ")[1].split("%")[0]) / 100
    assert "numbers of nf4" in said and "leave out --into to keep them" in said
    assert lost > 0.5 and (rounded - alone - layer.delta()).norm() > 0.5 * layer.delta().norm()
    assert torch.equal(rounded, as_stored(NF4(("*",)), whole))
    finer, said = merged("--into", "int8")
    assert "numbers of int8" in said and (finer - whole).abs().max() <= 0.51 * whole.abs().max() / 127
    assert logits_of(tmp_path / "out", ids).isfinite().all()


def logits_of(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return stemma.load(folder)(ids).logits


# ---------------------------------------------------------------- what is refused


def test_a_base_that_is_gone_or_not_named(tmp_path: Path) -> None:
    model = made(LoRA(("*.attention.q",), 2))
    model.save(str(tmp_path / "a"), layout="peft")
    with pytest.raises(CheckpointError, match=r"does not name the model it belongs to; give it: stemma.load\(MODEL"):
        stemma.load(tmp_path / "a")
    model.origin = str(tmp_path / "gone")
    model.save(str(tmp_path / "b"), layout="peft")
    with pytest.raises(CheckpointError, match="gone, which is not there any more"):
        stemma.load(tmp_path / "b")
    with pytest.raises(UsageError, match="the model has no adapter"):
        undo(model).save(str(tmp_path / "c"), layout="peft")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' is no adapter that is read here"),
        ({"lora_bias": True}, "lora_bias=True is not supported"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices=.3., and the file holds no rows"),
        ({"lora_alpha": "many"}, "lora_alpha='many' is of a wrong type"),
        ({"use_dora": True}, "use_dora=True and the tensors"),
    ],
)
def test_configs_that_mean_something_else_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    model = made(LoRA(("*.attention.q",), 2))
    model.save(str(tmp_path / "a"), layout="peft")
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(CheckpointError, match=words):
        formats.peft.attach(undo(model), tmp_path / "a")


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = made(LoRA(("*.attention.q",), 2))
    model.save(str(tmp_path / "a"), layout="peft")
    undo(model)
    file = tmp_path / "a" / "adapter_model.safetensors"
    state = load_file(file)
    first = next(k for k in state if k.endswith("lora_A.weight"))
    for changed, words in (
        ({k.replace("q_proj", "w_proj"): t for k, t in state.items()}, "no place for .*w_proj"),
        ({k: t for k, t in state.items() if k != first}, "lacks lora_A.weight"),
        (
            {k: t[:, :5].clone() if k == first else t for k, t in state.items()},
            r"has shape \[2, 5\], and this model needs",
        ),
        ({k: t.to(torch.int8) for k, t in state.items()}, "is of type I8, which no adapter has"),
    ):
        save_file(changed, file)
        with pytest.raises(CheckpointError, match=words):
            formats.peft.attach(model, tmp_path / "a")
        assert model.rewrites == () and not any(isinstance(m, LoRALinear) for m in model.modules())
    file.write_bytes(b"\x08" + bytes(30))
    with pytest.raises(CheckpointError, match="is damaged or cut short"):
        formats.peft.attach(model, tmp_path / "a")
    file.unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model.safetensors"):
        formats.peft.attach(model, tmp_path / "a")


def test_frozen_parts_that_learn_beside_are_written_whole(tmp_path: Path) -> None:
    model = made(LoRA(("*.attention.q",), 2), Trainable(("decoder.norm.*",)))
    with torch.no_grad():
        model.decoder.norm.weight.add_(0.3)  # type: ignore[union-attr]
    model.save(str(tmp_path / "a"), layout="peft")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["modules_to_save"] == ["model.norm"]
    plain = undo(copy.deepcopy(model))
    with torch.no_grad():
        plain.decoder.norm.weight.sub_(0.3)  # type: ignore[union-attr]
    assert near(logits(formats.peft.attach(plain, tmp_path / "a")), logits(model))
