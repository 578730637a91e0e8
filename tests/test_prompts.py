"""Soft prompts and prefixes: equal to peft in logits, loss and gradients, its directories both ways, and decoding."""

# ruff: noqa: F811

from __future__ import annotations

import copy
import json
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
from stemma.declare.family import Design
from stemma.decoding.sessions import begin
from stemma.errors import CheckpointError, UsageError
from stemma.families import tree
from stemma.formats.peft_prompts import part_of
from stemma.nn.cache import Cache
from stemma.nn.inputs import Inputs
from stemma.nn.model import Model
from stemma.nn.parts import Memory
from stemma.rewrites import LoRA, Prefix, SoftPrompt, Trainable, apply, merge, undo
from stemma.rewrites.adapters import names, use, without
from stemma.train import verify_resume
from test_adapters import SMALL, batch, gpt2, jittered, llama, near, t5
from test_train import text, train  # noqa: F401
from tiny import NETWORKS, build, tiny
from tiny import batch as rows_of

N = 4
EVERY = [str(param.values[0]) for param in NETWORKS]  # networks that differ


def bert() -> nn.Module:
    sizes = dict(SMALL, num_labels=3, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    return hf.BertForSequenceClassification(hf.BertConfig(**sizes))


MODELS: dict[str, Any] = {
    "bert": (bert, "SEQ_CLS"),
    "gpt2": (gpt2, "CAUSAL_LM"),
    "llama": (llama, "CAUSAL_LM"),
    "t5": (t5, "SEQ_2_SEQ_LM"),
}
KINDS: dict[str, dict[str, Any]] = {
    "prompt": {},
    "prefix": {},
    "projected": {"prefix_projection": True, "encoder_hidden_size": 7},
}
CASES = [(name, kind) for name in MODELS for kind in KINDS]


def data(name: str) -> dict[str, Tensor]:
    found = batch() | {"attention_mask": torch.ones(2, 11, dtype=torch.int64)}
    if name == "bert":
        return found | {"labels": torch.tensor([0, 2]), "token_type_ids": torch.arange(11).ge(6).long().expand(2, -1)}
    if name != "t5":
        return found
    found["attention_mask"][1, 8:] = 0
    return found | {"labels": found["labels"][:, :7].contiguous()}


def theirs(name: str, kind: str, folder: Path) -> Any:
    """A model of peft with a random adapter, saved as `base` and `adapter` in the folder."""
    make, task = MODELS[name]
    torch.manual_seed(0)
    jittered(make()).eval().save_pretrained(folder / "base")  # type: ignore[operator]
    base = type(make()).from_pretrained(folder / "base")
    make_config = peft.PromptTuningConfig if kind == "prompt" else peft.PrefixTuningConfig
    model = peft.get_peft_model(base, make_config(task_type=task, num_virtual_tokens=N, **KINDS[kind])).eval()
    jittered(model, only="classifier.modules_to_save")
    model.save_pretrained(folder / "adapter")  # type: ignore[operator]
    return model


def ours(reference: Any, kind: str, folder: Path) -> Model:
    """Its base, with an adapter of the same parameters."""
    if kind != "projected":
        return stemma.load(folder / "base", adapter=folder / "adapter")
    model = stemma.load(folder / "base", rewrites=(Prefix(length=N, projection=7),))
    encoder, part = reference.prompt_encoder["default"], part_of(model, "default")
    with torch.no_grad():
        pairs = [(part.own, encoder.embedding.weight)]
        for mine, other in ((part.down, encoder.transform[0]), (part.up, encoder.transform[2])):
            pairs += [(mine.weight, other.weight), (mine.bias, other.bias)]
        for mine, other in pairs:
            mine.copy_(other)
    return model


def of_text(logits: Tensor, expected: Tensor) -> Tensor:
    """Their logits without those at the prompt."""
    return expected[:, -logits.shape[1] :] if logits.ndim == 3 else expected


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_it_is_the_function_that_peft_computes(name: str, kind: str, tmp_path: Path) -> None:
    """Logits, loss and gradients of its directory here, and of ours there."""
    reference = theirs(name, kind, tmp_path)
    model = ours(reference, kind, tmp_path)
    if name == "bert" and kind == "projected":  # its classifier is part of the adapter
        apply(model, (Trainable(("task.*",)),))
        model.get_submodule("task.out").load_state_dict(
            reference.base_model.classifier.modules_to_save["default"].state_dict()
        )
    given = data(name)
    expected, found = reference(**given), model(**given)
    assert near(found.logits, of_text(found.logits, expected.logits))
    assert near(found.loss, expected.loss)
    learns = {n.partition(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert learns == {"prompt" if kind == "prompt" else "prefix"} | ({"task"} if name == "bert" else set())

    weight = torch.randn(found.logits.shape, generator=torch.Generator().manual_seed(5))
    (of_text(found.logits, expected.logits) * weight).sum().backward()
    (found.logits * weight).sum().backward()
    encoder, part = reference.prompt_encoder["default"], part_of(model, "default")
    assert near(part.own.grad, encoder.embedding.weight.grad[: len(part.own)])
    assert part.own.grad.abs().max() > 1e-3
    if kind == "projected":
        for mine, other in ((part.down, encoder.transform[0]), (part.up, encoder.transform[2])):
            assert near(mine.weight.grad, other.weight.grad, 1e-5) and near(mine.bias.grad, other.bias.grad, 1e-5)

    model.save(str(tmp_path / "ours"), layout="peft")
    written, read = (load_file(tmp_path / d / "adapter_model.safetensors") for d in ("ours", "adapter"))
    assert written.keys() == read.keys()
    for key, tensor in written.items():
        assert torch.equal(tensor, read[key][: len(tensor)]), key
    base = type(MODELS[name][0]()).from_pretrained(tmp_path / "base")
    there = peft.PeftModel.from_pretrained(base, str(tmp_path / "ours")).eval()
    with torch.no_grad():
        assert near(of_text(found.logits, there(**given).logits), found.logits)
        again = stemma.load(tmp_path / "base", adapter=tmp_path / "ours")
        assert near(again(**given).logits, found.logits, 1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_it_writes_what_peft_writes(name: str, kind: str, tmp_path: Path) -> None:
    reference = theirs(name, kind, tmp_path)
    model = stemma.load(tmp_path / "base", adapter=tmp_path / "adapter")
    ids = batch()["input_ids"][:1]
    expected = reference.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, min_new_tokens=8, do_sample=False
    )
    found = stemma.generate(model, [ids[0].tolist()], max_new_tokens=8, min_new_tokens=8, temperature=0.0)[0].ids
    assert found == expected[0, -8:].tolist()


# ---------------------------------------------------------------- what they are


def states(model: Model, given: dict[str, Tensor]) -> Tensor:
    """The last hidden states that heads read, of tokens."""
    source = {k: v for k, v in given.items() if not k.startswith("decoder")}
    target = Inputs(given.get("decoder_input_ids"))
    with torch.no_grad():
        return model.hidden(Inputs(**source), target).lm


def places(name: str) -> Design | None:
    """A tiny design, if it has a place in front of its texts."""
    design = tiny(name)
    return None if design.arch.streams is not None or isinstance(design.arch.mask, Memory) else design


def longer(given: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    """Inputs with tokens in front of each row."""
    n, rows = len(ids), len(given["input_ids"])
    out = dict(given)
    out["input_ids"] = torch.cat([ids.expand(rows, -1), given["input_ids"]], 1)
    for name, fill in (("attention_mask", 1), ("token_type_ids", 0)):
        if name in given:
            out[name] = nn.functional.pad(given[name], (n, 0), value=fill)
    if "langs" in given:
        out["langs"] = torch.cat([given["langs"][:, :1].expand(-1, n), given["langs"]], 1)
    if "prefix" in given:
        out["prefix"] = given["prefix"] + n
    if "position_ids" in given:  # of two columns
        own = torch.stack([torch.arange(n), torch.zeros(n, dtype=torch.int64)], -1).expand(rows, -1, -1)
        out["position_ids"] = torch.cat([own, given["position_ids"] + torch.tensor([n, 0])], 1)
    return out


def test_a_soft_prompt_of_embedded_tokens_is_those_tokens() -> None:
    """In every network: positions, masks, padding, prefixes, segments and languages shift."""
    ids, wrong = torch.tensor([5, 9, 7, 8]), []
    for name in EVERY:
        if (design := places(name)) is None:
            continue
        model = build(design)
        given = rows_of(design, rows=2)
        expected = states(model, longer(given, ids))
        apply(model, (SoftPrompt(N),))
        with torch.no_grad():
            part_of(model, "default").own.copy_(model.embed.vectors(Inputs(ids[None]))[0])
        found = states(model, given)
        real = (
            given["attention_mask"].bool() if "decoder_input_ids" not in given else torch.ones(found.shape[:2]).bool()
        )
        if not near(found[real], expected[:, -found.shape[1] :][real]):
            wrong.append(name)
        undo(model)
        assert torch.equal(states(model, longer(given, ids)), expected)
    assert not wrong


def test_a_prefix_of_read_keys_is_the_text_that_was_read() -> None:
    """Of decoders in their whole depth; of encoders, whose tokens read what follows them, in one layer."""
    ids, wrong = torch.tensor([5, 9, 7, 8]), []
    for name in EVERY:
        if (design := places(name)) is None or design.arch.structure == "encoder-decoder":
            continue
        if design.arch.structure == "encoder":
            if design.dims.groups is not None or design.arch.convolution is not None:
                continue  # one layer is not whole there
            design = tiny(name, **{"dims.layers": 1})
        model = build(design)
        given = {k: v for k, v in rows_of(design, rows=2).items() if k != "token_type_ids"}
        if design.arch.structure == "decoder" and "prefix" in given:
            given["prefix"] = torch.tensor([0, 0])  # what was read before does not see the text
            given.pop("position_ids", None)
        expected = states(model, longer(given, ids))
        cache = Cache(design.arch, len((model.decoder or model.encoder).order), 1, N, even=True)
        given_ids = Inputs(ids[None], langs=None if "langs" not in given else given["langs"][:1, :1].expand(-1, N))
        given_ids.cache, read = cache, model.decode if model.decoder is not None else model.encode
        given_ids.prefix = torch.tensor([N]) if "prefix" in given else None
        with torch.no_grad():
            read(given_ids)
            apply(model, (Prefix(N),))
            pairs = [(k[0, :, :N], v[0, :, :N]) for k, v in zip(cache.keys, cache.values, strict=True)]
            flat = torch.cat([x.transpose(0, 1).flatten(1) for pair in pairs for x in pair], 1)
            if flat.shape == part_of(model, "default").own.shape:
                part_of(model, "default").own.copy_(flat)
        found = states(model, given)
        real = given["attention_mask"].bool()
        if not near(found[real], expected[:, -found.shape[1] :][real]):
            wrong.append(name)
    assert not wrong


# ---------------------------------------------------------------- decoding


def made(name: str, *rewrites: Any) -> Model:
    """A tiny model with adapters off their first values."""
    design = tiny(name)
    model = formats.attach(build(design), design, tree()[name], None)
    apply(model, rewrites)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if n.startswith(("prompt", "prefix")):
                p.copy_(torch.randn(p.shape, generator=generator))
    return model


BOTH = (SoftPrompt(3), Prefix(N))


@pytest.mark.parametrize("name", ["gpt2", "llama2", "mistral", "gemma2", "gpt3", "lamda", "t5", "umt5", "glm", "unilm"])
def test_cached_decoding_equals_the_full_pass(name: str) -> None:
    """Behind a soft prompt and a prefix, for rows of different lengths, of which one joins later and one leaves."""
    model = made(name, *BOTH)
    rows, new = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14]], [15, 16, 17, 18, 19]
    answers = model.arch.structure == "encoder-decoder"
    with torch.inference_mode():

        def whole(at: int, taken: list[int]) -> Tensor:
            """The logits behind a row and what it took in, read at once without a cache where a model can."""
            if answers:
                out = model(torch.tensor([rows[at]]), decoder_input_ids=torch.tensor([[0, *taken]]))
                return out.logits[0, -1]
            if model.encoder is None and name != "glm":
                return model(torch.tensor([[*rows[at], *taken]])).logits[0, -1]
            ids = torch.tensor([[*rows[at], *taken]])
            if name == "glm":
                ids = ids[:, :]
                prefix, n = torch.tensor([len(rows[at])]), ids.shape[1]
                first = [(i, 0) for i in range(len(rows[at]))]
                first += [(len(rows[at]) - 1, i + 1) for i in range(n - len(rows[at]))]
                return model(ids, prefix=prefix, position_ids=torch.tensor([first])).logits[0, -1]
            masked = torch.cat([ids, torch.tensor([[4]])], 1)
            return model(masked, attention="prefix", prefix=torch.tensor([len(rows[at])])).logits[0, -1]

        session = begin(model, rows[:1])
        assert near(session.logits[0], whole(0, []), 2e-5)
        session.step(torch.tensor(new[:1]))
        session.admit(rows[1:])
        assert near(session.logits[0], whole(0, new[:1]), 2e-5) and near(session.logits[1], whole(1, []), 2e-5)
        for i in range(1, 4):
            session.step(torch.tensor(new[i : i + 1] * 2))
            assert near(session.logits[0], whole(0, new[: i + 1]), 2e-5)
            assert near(session.logits[1], whole(1, new[1 : i + 1]), 2e-5)
        session.keep([1])
        session.step(torch.tensor(new[4:]))
        assert near(session.logits[0], whole(1, new[1:5]), 2e-5)


def test_padding_on_the_left_changes_nothing() -> None:
    for name in ("gpt2", "llama2"):
        model = made(name, *BOTH)
        ids = torch.tensor([[5, 6, 7, 8, 9]])
        mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
        places = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            alone = model(ids).logits
            padded = model(nn.functional.pad(ids, (3, 0)), attention_mask=mask, position_ids=places).logits
        assert near(padded[:, 3:], alone)


def test_the_position_table_holds_them_too() -> None:
    model = made("gpt2", SoftPrompt(3), Prefix(N))  # 40 positions
    with torch.no_grad():
        assert model(torch.full((1, 33), 5)).logits.shape[1] == 33
        with pytest.raises(UsageError, match="a text of 41 tokens does not fit"):
            model(torch.full((1, 34), 5))
    with pytest.raises(UsageError, match="33 positions"):
        stemma.generate(model, [[5] * 30], max_new_tokens=4)
    assert len(stemma.generate(model, [[5] * 30], max_new_tokens=3, ignore_eos=True)[0].ids) == 3


# ---------------------------------------------------------------- packed rows


@pytest.mark.parametrize("name", ["gpt2", "llama2", "mistral", "lamda"])
def test_every_document_of_a_packed_row_reads_them(name: str) -> None:
    for kinds in ((SoftPrompt(3),), (Prefix(N),), BOTH):
        model = made(name, *kinds)
        one, two = torch.tensor([[5, 6, 7, 8, 9, 4, 3]]), torch.tensor([[12, 13, 14]])
        documents = torch.tensor([[0] * 7 + [1] * 3])
        given: dict[str, Any] = {"input_ids": torch.cat([one, two], 1), "documents": documents}
        with torch.no_grad():
            alone = torch.cat([model(one).logits, model(two).logits], 1)
            assert near(model(**given).logits, alone)
            places = torch.cat([torch.arange(7), torch.arange(3)])[None]
            assert near(model(**given, position_ids=places).logits, alone)


def test_packed_rows_of_networks_that_read_both_ways() -> None:
    """A prefix does not read the text, a soft prompt does: then a row holds one document."""
    one, two = torch.tensor([[5, 6, 7, 8, 9, 4, 3]]), torch.tensor([[12, 13, 14]])
    given: dict[str, Any] = {
        "input_ids": torch.cat([one, two], 1),
        "documents": torch.tensor([[0] * 7 + [1] * 3]),
        "position_ids": torch.cat([torch.arange(7), torch.arange(3)])[None],
    }
    model = made("bert", Prefix(N))
    with torch.no_grad():
        alone = torch.cat([model(one).logits, model(two).logits], 1)
        assert near(model(**given).logits, alone)
    model = made("bert", SoftPrompt(3))
    with pytest.raises(UsageError, match="each row must hold one document; this batch has rows of several"):
        model(**given)
    model = made("t5", Prefix(N))
    both = given | {"decoder_input_ids": given["input_ids"], "decoder_documents": given["documents"]}
    with torch.no_grad():
        alone = torch.cat([model(x, decoder_input_ids=x).logits for x in (one, two)], 1)
        assert near(model(**both).logits, alone)


# ---------------------------------------------------------------- a model's prompts


def test_they_go_beside_each_other_and_other_adapters(tmp_path: Path) -> None:
    given = torch.tensor([[5, 6, 7, 8]])

    def logits(model: Model) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(given).logits
        return found

    model = made(
        "llama", LoRA(("*.attention.q",), 2), SoftPrompt(3, name="a"), SoftPrompt(2, name="b"), Prefix(2, name="p")
    )
    before = logits(undo(copy.deepcopy(model)))
    assert names(model) == ["default", "a", "b", "p"] and model.ahead == 7
    with without(model):
        assert torch.equal(logits(model), before) and model.ahead == 0
    every = logits(model)
    for kind in ("a", "b", "p"):
        formats.peft.save(model, tmp_path / kind, name=kind)
    alone = logits(use(copy.deepcopy(model), "b"))
    assert not near(alone, every, 1e-3) and not near(alone, before, 1e-3)
    made("llama").save(str(tmp_path / "base"))
    again = stemma.load(tmp_path / "base", adapter=[tmp_path / "a", tmp_path / "b", tmp_path / "p"])
    assert names(again) == ["default", "b", "p"] and near(logits(again), every)
    assert near(logits(use(again, "b")), alone)
    with pytest.raises(UsageError, match="the SoftPrompt 'b' takes part or does not: its strength is 1 or 0"):
        use(again, {"b": 0.5})
    assert near(logits(again), alone)
    apply(again, (LoRA(("*.attention.q",), 2, name="b"),))
    with pytest.raises(UsageError, match="keeps one kind of adapter, and 'b' is SoftPrompt and LoRA: name them apart"):
        formats.peft.save(again, tmp_path / "c", name="b")


def test_they_are_fp32_and_no_part_of_a_weight(tmp_path: Path) -> None:
    model = made("llama", *BOTH).to(torch.bfloat16)
    undo(model)
    apply(model, (SoftPrompt(3), Prefix(N, 5)))
    own = [p for p in model.parameters() if p.requires_grad]
    assert len(own) == 6 and {p.dtype for p in own} == {torch.float32}
    out = model(**batch())
    assert out.logits.dtype == torch.bfloat16
    out.loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in own)
    with pytest.raises(UsageError, match="prompt cannot be merged: a SoftPrompt stands in front of the text"):
        merge(model)
    with pytest.raises(UsageError, match="cannot be saved as plain weights"):
        model.save(str(tmp_path / "plain"))
    assert not (tmp_path / "plain").exists() and len(model.rewrites) == 2


@pytest.mark.parametrize("init", ["vocabulary", "uniform", "normal"])
def test_where_a_prompt_begins(init: Any) -> None:
    model = build(tiny("gemma"))
    apply(model, (SoftPrompt(50, init),), seed=1)
    own = part_of(model, "default").own.detach()
    if init == "vocabulary":
        table = model.embed.vectors(Inputs(torch.arange(83)[None]))[0]
        assert all((table == row).all(1).any() for row in own) and len(own.unique(dim=0)) > 20
    elif init == "uniform":
        assert own.abs().max() <= 0.5 and abs(own.std() - 12**-0.5) < 0.02
    else:
        assert abs(own.std() - 1) < 0.05


def test_networks_without_a_place_are_refused() -> None:
    for name, words in (("xlnet", "two streams"), ("longllama", "reads in windows")):
        for kind in (SoftPrompt(2), Prefix(2)):
            with pytest.raises(UsageError, match=words):
                apply(build(tiny(name)), (kind,))
    with pytest.raises(UsageError, match="SoftPrompt replaces Prompt, and 'prefix' matches prefix, of type Past"):
        apply(build(tiny("gpt2")), (SoftPrompt(2, where=("prefix",)),))


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize(("name", "kind"), [("llama", "prompt"), ("bert", "prefix"), ("t5", "projected")])
def test_a_run_keeps_its_prompt_alone(name: str, kind: str, text: Path, tmp_path: Path) -> None:
    """Only it learns, bit for bit; its model folder is a PEFT directory, and the run goes on exactly."""
    first = train(name, tmp_path / "first", text, 2)
    what = {"prompt": SoftPrompt(5), "prefix": Prefix(5), "projected": Prefix(5, 6)}[kind]
    edits = {
        "train.start": str(first.directory),
        "rewrites": (what,),
        "recipe.lr": 0.3,
        "train.save_every": 4,
    }
    if name == "bert":
        with pytest.raises(UsageError, match=r"rows of 32 tokens behind 5 others do not fit .* set train.context=27"):
            train(name, tmp_path / "run", text, 8, edits)
        edits["train.context"] = 27
    run = train(name, tmp_path / "run", text, 8, edits)
    assert {p.name for p in (run.directory / "model").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    place = "prompt" if kind == "prompt" else "prefix"
    held = load_file(next((run.directory / "checkpoints").glob("*/model.safetensors")))
    assert held and all(k.startswith(f"{place}.") for k in held)
    start, now = stemma.load(first.directory).state_dict(), undo(copy.deepcopy(run.model)).state_dict()
    assert start.keys() == now.keys() and all(torch.equal(start[k], now[k]) for k in start)
    loaded = stemma.load(run.directory)
    ids = torch.arange(3, 20)[None]
    more = {"decoder_input_ids": ids} if name == "t5" else {}
    with torch.no_grad():
        assert near(loaded(ids, **more).logits, run.model(ids, **more).logits, 1e-6)
        assert not near(loaded(ids, **more).logits, stemma.load(first.directory)(ids, **more).logits, 1e-4)
    verify_resume(run.directory)


def test_a_run_that_could_not_keep_its_prompt_is_not_begun(text: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.start names its base"):
        train("llama", tmp_path / "run", text, 2, {"rewrites": (SoftPrompt(5),)})
    assert not (tmp_path / "run" / "run.json").exists()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "P_TUNING"}, "peft_type='P_TUNING' is no adapter that is read here; LORA, TRAINABLE_TOKENS"),
        ({"num_virtual_tokens": "many"}, "num_virtual_tokens='many' must be a number of tokens such as 20"),
        ({"num_virtual_tokens": 7}, r"prompt_embeddings has shape \[4, 36\], and this model needs \[7, 36\]"),
        ({"peft_type": "PREFIX_TUNING"}, r"prompt_embeddings has shape \[4, 36\], and this model needs \[4, 216\]"),
    ],
)
def test_directories_that_mean_something_else_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    model = made("gpt2", SoftPrompt(N))
    model.save(str(tmp_path / "a"), layout="peft")
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    undo(model)
    with pytest.raises(CheckpointError, match=words):
        formats.peft.attach(model, tmp_path / "a")
    assert model.rewrites == () and model.ahead == 0
    save_file({"other": torch.zeros(2)}, tmp_path / "a" / "adapter_model.safetensors")
    if "P_TUNING" not in str(change):
        with pytest.raises(CheckpointError, match="holds no prompt_embeddings"):
            formats.peft.attach(model, tmp_path / "a")
