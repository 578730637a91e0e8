"""GLM, GLM-130B and ChatGLM against short references: files, logits under prefixes, and decoding into blanks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import stemma
from reference import chatglm, glm130b, glm2021
from running import check_rows
from stemma import families, spec
from stemma.decoding import Session, batch, beams, blanks, generation_config
from stemma.decoding.sessions import begin
from stemma.errors import CheckpointError, UsageError
from stemma.formats import LAYOUTS, attach, layout_of, read_design
from stemma.nn.model import Model, count
from stemma.text import Specials, Tokenizer

MASK, END, START = 7, 8, 9  # [MASK], [gMASK], <sop>
VOCAB = 61


@dataclass
class Case:
    """A tiny model on both sides. `full`: logits of ids (T) at places and with a context (T V); `places`: what those
    are for a prompt."""

    model: Model
    weights: dict[str, Tensor]
    full: Callable[[dict[str, Tensor], Tensor, Tensor, int], Tensor]
    places: Callable[[list[int]], tuple[Tensor, int]]


def drawn(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Weights of every tensor, norms around 1, and nothing at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=generator) * 0.15 for name, shape in shapes.items()}
    return {name: w + ("norm" in name and name.endswith("weight")) for name, w in weights.items()}


def written(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Model:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return stemma.load(folder)


GLM = {"architectures": ["GLMModel"], "model_type": "glm", "num_layers": 3, "hidden_size": 32, "vocab_size": VOCAB,
       "num_attention_heads": 4, "max_sequence_length": 40, "attention_scale": 1.0, "pool_token": "cls",
       "block_position_encoding": True, "output_predict": True, "parallel_output": True, "spell_length": None,
       "relative_encoding": False, "checkpoint_activations": False, "max_memory_length": 0}  # fmt: skip
CHAT = {"architectures": ["ChatGLMModel"], "model_type": "chatglm", "num_layers": 3, "hidden_size": 32,
        "inner_hidden_size": 56, "num_attention_heads": 4, "vocab_size": VOCAB, "layernorm_epsilon": 1e-05,
        "max_sequence_length": 48, "bos_token_id": START, "eos_token_id": 10, "mask_token_id": MASK,
        "gmask_token_id": END, "pad_token_id": 3, "position_encoding_2d": True, "use_cache": True}  # fmt: skip
CHAT2 = {"architectures": ["ChatGLMModel"], "model_type": "chatglm", "num_layers": 3, "hidden_size": 32,
         "ffn_hidden_size": 44, "kv_channels": 8, "num_attention_heads": 4, "multi_query_attention": True,
         "multi_query_group_num": 2, "padded_vocab_size": VOCAB, "vocab_size": VOCAB, "seq_length": 48,
         "add_bias_linear": False, "add_qkv_bias": True, "rmsnorm": True, "post_layer_norm": True, "original_rope": True,
         "layernorm_epsilon": 1e-05, "apply_query_key_layer_scaling": True, "hidden_dropout": 0.0, "eos_token_id": 2,
         "apply_residual_connection_post_layernorm": False, "tie_word_embeddings": False, "pad_token_id": 0}  # fmt: skip


def glm(folder: Path) -> Case:
    weights = drawn(glm2021.shapes(3, 32, VOCAB, 40))
    model = written(folder, GLM, weights)
    model.text = spec.edit(model.text, {"bos_id": START, "blank_ids": (MASK, END), "eos_id": 10})

    def places(ids: list[int]) -> tuple[Tensor, int]:
        first, second, context = glm2021.places(ids, {MASK, END}, START)
        return torch.tensor([first, second]).T, context

    return Case(model, weights, lambda w, ids, at, n: glm2021.logits(w, 4, ids, at[:, 0], at[:, 1], n), places)


def chat(folder: Path) -> Case:
    weights = drawn(chatglm.shapes(3, 32, 56, VOCAB, head=False))
    weights["lm_head.weight"] = weights["transformer.word_embeddings.weight"].clone()

    def places(ids: list[int]) -> tuple[Tensor, int]:
        first, second, context = chatglm.places(ids, {MASK, END}, START)
        return torch.tensor([first, second]).T, context

    return Case(
        written(folder, CHAT, weights),
        weights,
        lambda w, ids, at, n: chatglm.logits(w, 4, ids, at[:, 0], at[:, 1], n),
        places,
    )


def large(folder: Path) -> Case:
    """GLM-130B: there is no file of it, so that weights go in by hand."""
    design = spec.edit(
        families.design("glm-130b"),
        {f"dims.{k}": v for k, v in dict(d_model=32, layers=3, heads=4, d_ff=44, vocab=VOCAB, context=48).items()}
        | {"text.bos_id": START, "text.blank_ids": (MASK, END), "text.eos_id": 10},
    )
    weights = drawn(glm130b.shapes(3, 32, 44, VOCAB))
    state: dict[str, Tensor] = {"embed.tokens.weight": weights["word_embeddings.weight"]}
    for leaf in ("weight", "bias"):
        state[f"decoder.embed_norm.{leaf}"] = weights[f"embedding_norm.{leaf}"]
        for i in range(3):
            ours = f"decoder.blocks.{i}"
            packed = weights[f"{i}.query_key_value.{leaf}"].unflatten(0, (4, 3, 8))
            state |= {f"{ours}.attention.{x}.{leaf}": packed[:, n].flatten(0, 1) for n, x in enumerate("qkv")}
            state[f"{ours}.attention.o.{leaf}"] = weights[f"{i}.dense.{leaf}"]
            state[f"{ours}.mlp.up.{leaf}"], state[f"{ours}.mlp.gate.{leaf}"] = weights[
                f"{i}.dense_h_to_4h.{leaf}"
            ].chunk(2)
            state[f"{ours}.mlp.down.{leaf}"] = weights[f"{i}.dense_4h_to_h.{leaf}"]
            state |= {f"{ours}.{n}.{leaf}": weights[f"{i}.{n}.{leaf}"] for n in ("attention_norm", "mlp_norm")}
    model = Model(design.arch, design.dims)
    model.load_state_dict(state)

    def places(ids: list[int]) -> tuple[Tensor, int]:
        place, context = glm130b.places(ids, MASK, END, START)
        return torch.tensor(place), context

    made = attach(model, design, families.family("glm-130b")).eval()
    return Case(made, weights, lambda w, ids, at, n: glm130b.logits(w, 4, ids, at, n), places)


KINDS = {"glm": glm, "chatglm": chat, "glm-130b": large}
PROMPTS = {
    "middle": [20, 21, MASK, 22, 23, 24, START],
    "suffix": [30, 31, 32, 33, END, START],
    "begun": [20, MASK, 22, 23, START, 40, 41, 42],
    "second": [20, MASK, 22, MASK, 25, START, 40, 41, START],
    "first": [MASK, 44, 45, START],
    "no start": [20, 21, MASK, 22],
    "no blank": [50, 51, 52, 53, 54],
}


def of(case: Case, name: str) -> list[int]:
    """GLM-130B fills one blank only."""
    return PROMPTS["first" if name == "second" and "embedding_norm.weight" in case.weights else name]


# ---------------------------------------------------------------- logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("left", [False, True])
def test_logits_equal_the_reference(
    kind: str, dtype: torch.dtype, tolerance: float, left: bool, tmp_path: Path
) -> None:
    """Rows of several lengths with contexts of several lengths, none and all among them."""
    case = KINDS[kind](tmp_path)
    model, weights = case.model.to(dtype), {k: v.to(dtype) for k, v in case.weights.items()}
    generator = torch.Generator().manual_seed(1)
    lengths, contexts = [17, 9, 13, 17, 1], [6, 9, 0, 1, 1]
    columns = model.decoder.position.columns
    ids, real = torch.full((5, 17), 3), torch.zeros(5, 17, dtype=torch.int64)
    at = torch.zeros(5, 17, 2, dtype=torch.int64)
    spans = [slice(17 - n, 17) if left else slice(0, n) for n in lengths]
    for row, (span, n, context) in enumerate(zip(spans, lengths, contexts, strict=True)):
        ids[row, span] = torch.randint(11, VOCAB, (n,), generator=generator)
        real[row, span] = 1
        place = torch.arange(n)
        within = (place - context + 1).clamp(min=0)
        at[row, span] = torch.stack([torch.where(within > 0, min(2, context), place), within], 1)
    at = at if columns > 1 else at[..., 0]
    prefix = torch.tensor([n + (17 - length if left else 0) for n, length in zip(contexts, lengths, strict=True)])
    with torch.no_grad():
        got = model(ids, attention_mask=real, position_ids=at, prefix=prefix).logits
        for row, (span, context) in enumerate(zip(spans, contexts, strict=True)):
            want = case.full(weights, ids[row, span], at[row, span], context)
            assert (got[row, span] - want).abs().max() <= tolerance
        bare = model(ids[:1])  # no positions and no prefix: a text without blanks, read causally
        places = torch.stack([torch.arange(17), torch.zeros(17, dtype=torch.int64)], 1)
        want = case.full(weights, ids[0], places if columns > 1 else places[:, 0], 0)
        assert (bare.logits[0] - want).abs().max() <= tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-9)])
@pytest.mark.parametrize(("groups", "heads"), [(2, 4), (1, 4), (4, 4)])
def test_chatglm2_equals_the_reference(dtype: str, tolerance: float, groups: int, heads: int, tmp_path: Path) -> None:
    config = CHAT2 | {"multi_query_group_num": groups, "multi_query_attention": groups < heads}
    weights = drawn(chatglm.second_shapes(3, 32, 44, VOCAB, heads, groups, 8))
    model = written(tmp_path, config, weights).to(getattr(torch, dtype))
    assert model.family.name == "chatglm2"
    ids = torch.randint(3, VOCAB, (2, 15), generator=torch.Generator().manual_seed(2))
    real = torch.ones_like(ids)
    real[1, :6] = 0
    with torch.no_grad():  # positions from each row's first token on: angles are fp32, and others round otherwise
        got = model(ids, attention_mask=real, position_ids=(real.cumsum(1) - 1).clamp(min=0)).logits
    wide = {k: v.to(model.dtype) for k, v in weights.items()}
    for row, begin_at in ((0, 0), (1, 6)):
        want = chatglm.second_logits(wide, heads, groups, ids[row, begin_at:])
        assert (got[row, begin_at:] - want).abs().max() <= tolerance


def test_the_count_of_glm_130b() -> None:
    """The matrices, biases and two norms a layer of the paper, and the norm of the embeddings that the code has."""
    design = families.design("glm-130b")
    bare = spec.edit(design, {"arch.embed_norm": False})
    assert count(bare.arch, bare.dims) == 128_697_769_984
    assert count(design.arch, design.dims) == 128_697_769_984 + 2 * 12_288


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("config", [GLM, CHAT, CHAT2], ids=["glm", "chatglm", "chatglm2"])
def test_files_come_back_bit_for_bit(config: dict[str, Any], tmp_path: Path) -> None:
    shapes = {
        "num_attention_heads": lambda: glm2021.shapes(3, 32, VOCAB, 40),
        "inner_hidden_size": lambda: chatglm.shapes(3, 32, 56, VOCAB),
        "ffn_hidden_size": lambda: chatglm.second_shapes(3, 32, 44, VOCAB, 4, 2, 8),
    }
    weights = drawn(next(make for mark, make in reversed(shapes.items()) if mark in config)())
    model = written(tmp_path / "a", config, weights)
    model.save(tmp_path / "b")
    saved = {k.removeprefix("glm."): v for k, v in load_file(tmp_path / "b/model.safetensors").items()}
    assert saved.keys() == weights.keys() and all(torch.equal(saved[k], weights[k]) for k in weights)
    again = json.loads((tmp_path / "b/config.json").read_text())
    assert {k: again[k] for k in config if k != "architectures"} == {
        k: v for k, v in config.items() if k != "architectures"
    }
    assert (stemma.load(tmp_path / "b").arch, model.dims) == (model.arch, stemma.load(tmp_path / "b").dims)


@pytest.mark.parametrize("prefix", ["", "glm.", "module."])
def test_files_of_glm_with_any_prefix(prefix: str, tmp_path: Path) -> None:
    weights = drawn(glm2021.shapes(3, 32, VOCAB, 40))
    model = written(tmp_path, GLM, {prefix + k: v for k, v in weights.items()})
    assert torch.equal(model.embed.tokens.weight, weights["word_embeddings.weight"])
    assert torch.equal(model.decoder.position.blanks.weight, weights["transformer.block_position_embeddings.weight"])


def test_a_head_that_is_not_the_embeddings_is_kept(tmp_path: Path) -> None:
    weights = drawn(chatglm.shapes(3, 32, 56, VOCAB))
    model = written(tmp_path, CHAT, weights)
    assert not model.arch.heads.lm.tied and torch.equal(model.lm.weight, weights["lm_head.weight"])
    at = torch.stack([torch.arange(9), torch.zeros(9, dtype=torch.int64)], 1)
    ids = torch.arange(11, 20)
    with torch.no_grad():
        got = model(ids[None], position_ids=at[None], prefix=torch.tensor([4])).logits[0]
    assert (got - chatglm.logits(weights, 4, ids, at[:, 0], at[:, 1], 4)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("model_type", "marks"), [("glm", ("num_layers", "num_hidden_layers")), ("chatglm", ("inner_hidden_size", "ffn_hidden_size"))]
)  # fmt: skip
def test_publishers_of_one_model_type_are_told_apart(model_type: str, marks: tuple[str, str]) -> None:
    for mark in marks:
        _, owner, layout, _ = read_design({"model_type": model_type, mark: 3})
        assert layout is not None and layout.mark == mark and owner is not None and owner.name in layout.families
    for keys, word in (({}, "neither"), (dict.fromkeys(marks, 3), "both")):
        with pytest.raises(CheckpointError, match=word) as caught:
            read_design({"model_type": model_type} | keys)
        assert all(mark in str(caught.value) for mark in marks)


def test_a_config_that_means_two_things_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rope_ratio=50"):
        written(tmp_path, CHAT2 | {"rope_ratio": 50}, {"x": torch.zeros(1)})


@pytest.mark.parametrize("size", ["glm-4-9b", "glm-4-9b-0414", "palm-8b", "palm-540b", "command-r-v01", "chatglm-6b"])
def test_designs_are_written_in_the_layout_of_others(size: str) -> None:
    design = families.design(size)
    layout, data, why = layout_of(design, families.family(size))
    assert layout is not None, why
    names = {"glm-4-9b": "glm", "glm-4-9b-0414": "glm4", "chatglm-6b": "chatglm"}
    assert data["model_type"] == names.get(size, "cohere")
    if size == "palm-540b":
        assert (data["head_dim"], data["num_key_value_heads"], data["logit_scale"]) == (256, 1, 18_432**-0.5)
    again, owner, _, _ = read_design(data)
    assert again.name == size and owner is families.family(size)
    assert LAYOUTS[layout.name] is layout


@pytest.mark.parametrize("name", ["glm-base", "chatglm-6b", "glm-130b"])
def test_a_plain_text_is_trained_on_too(name: str) -> None:
    """Next-token training of packed documents: positions of both kinds, and no document sees another."""
    from stemma.objectives.base import position_ids

    model = stemma.build(name, layers=2, vocab=VOCAB, d_model=32, heads=4, d_ff=64, context=40).double()
    ids = torch.randint(11, VOCAB, (1, 20), generator=torch.Generator().manual_seed(6))
    documents = (torch.arange(20) >= 8).long()[None]
    at = position_ids(model, {"position_ids": torch.cat([torch.arange(8), torch.arange(12)])[None]})
    assert at is None if name == "glm-130b" else at.shape == (1, 20, 2)
    with torch.no_grad():
        packed = model(ids, position_ids=at, documents=documents).hidden
        alone = torch.cat([model(ids[:, :8]).hidden, model(ids[:, 8:]).hidden], 1)
    assert (packed - alone).abs().max() < (1e-6 if at is None else 1e-10)  # angles are fp32 and go on without positions


def test_kernels_of_palm_begin_with_their_fan_in() -> None:
    model = stemma.build("palm-8b", layers=1, vocab=500, d_model=128, heads=4, head_dim=64, d_ff=512)
    block = model.decoder.blocks[0]
    for weight, std in (
        (model.embed.tokens.weight, 1.0),
        (block.attention.q.weight, 128**-0.5),
        (block.attention.o.weight, 256**-0.5),
        (block.mlp.up.weight, 128**-0.5),
        (block.mlp.down.weight, 512**-0.5),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.03)


# ---------------------------------------------------------------- decoding


class FullPass:
    """What a session does, by the whole text again at every step, with places counted by the reference."""

    def __init__(self, case: Case, rows: list[list[int]]) -> None:
        self.case, self.device = case, torch.device("cpu")
        self.rows = [(row, len(row)) for row in rows]
        self.read()

    def read(self) -> None:
        out = []
        for row, asked in self.rows:
            at, context = self.case.places(row[:asked])
            more = range(len(row) - asked)
            ids, started = row, START in row[:asked]
            if at.ndim == 2:
                last = at[-1] if started else torch.tensor([_hole(row[:asked]), 0])
                at = torch.cat([at, *[torch.stack([last[0], last[1] + 1 + k])[None] for k in more]])
            else:
                hole = next((i for i in range(context) if row[i] in (MASK, END)), None)
                stays = hole is not None and row[hole] == MASK
                at = torch.cat([at, torch.tensor([hole if stays else asked + k for k in more], dtype=torch.int64)])
            weights = {k: v.to(self.case.model.dtype) for k, v in self.case.weights.items()}
            out.append(self.case.full(weights, torch.tensor(ids), at, context)[-1])
        self.logits = torch.stack(out).float()

    goes_ahead = False

    def likeliest(self, logits: Tensor) -> None:
        """Found by nobody."""

    def step(self, tokens: list[int]) -> Tensor:
        self.rows = [([*row, int(t)], asked) for (row, asked), t in zip(self.rows, tokens, strict=True)]
        self.read()
        return self.logits

    def keep(self, rows: list[int]) -> None:
        self.rows = [self.rows[i] for i in rows]
        self.logits = self.logits[rows]

    def leave(self, *_: Any) -> None: ...

    def close(self) -> None: ...


def _hole(prompt: list[int]) -> int:
    return next((i for i, t in enumerate(prompt) if t in (MASK, END)), len(prompt) - 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [["suffix"], ["middle", "middle"], list(PROMPTS)], ids=["one", "even", "ragged"])
def test_cached_logits_equal_the_full_pass(kind: str, names: list[str], tmp_path: Path) -> None:
    case = KINDS[kind](tmp_path)
    case.model.double()
    rows = [of(case, name) for name in names]
    tokens = torch.randint(11, VOCAB, (12, len(rows)), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        session, full = begin(case.model, rows, 12), FullPass(case, rows)
        assert isinstance(session, blanks.BlankSession)
        for step in range(12):
            assert (session.logits - full.logits).abs().max() < 1e-6
            session.step(tokens[step]), full.step(tokens[step])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_join_and_leave_read_as_alone(kind: str, tmp_path: Path) -> None:
    case = KINDS[kind](tmp_path)
    case.model.double()
    rows = [of(case, name) for name in list(PROMPTS)[:5]]
    texts = torch.randint(11, VOCAB, (len(rows), 16), generator=torch.Generator().manual_seed(4)).tolist()

    def alone(prompt: list[int], new: list[int]) -> Tensor:
        full = FullPass(case, [prompt])
        full.rows = [([*prompt, *new], len(prompt))]
        full.read()
        return full.logits[0]

    check_rows(case.model, rows, texts, alone)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_continuations_equal_the_full_pass(
    kind: str, num_beams: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven prompts of different lengths at once, each alone, and without a cache."""
    case = KINDS[kind](tmp_path)
    rows = [of(case, name) for name in PROMPTS]
    options: dict[str, Any] = dict(max_new_tokens=9, num_beams=num_beams)
    together = [r.ids for r in stemma.generate(case.model, rows, **options)]
    assert together == [stemma.generate(case.model, [row], **options)[0].ids for row in rows]
    for module in (batch, beams):
        monkeypatch.setattr(module, "begin", lambda model, prompts, room, *_: FullPass(case, prompts))
    assert together == [r.ids for r in stemma.generate(case.model, rows, **options)]


def test_places_are_those_of_training() -> None:
    """The example of the paper's figure 2: x1 x2 [M] x4 [M], S x5 x6, S x3; here blanks in the order of the text."""
    known = blanks.BlankTokens(START, (MASK, END), END)
    got = blanks.place([31, 32, MASK, 34, MASK, START, 33, START, 35, 36], known, columns=2)
    assert [p for p, _ in got.places] == [0, 1, 2, 3, 4, 2, 2, 4, 4, 4]
    assert [b for _, b in got.places] == [0, 0, 0, 0, 0, 1, 2, 1, 2, 3]
    assert (got.context, got.at, got.block) == (5, 4, 4)


def test_tables_end(tmp_path: Path) -> None:
    """Places in the text and in a blank are counted apart, so that the two together may be longer than a table."""
    case = glm(tmp_path)
    prompt = [20] * 30 + [END, START]
    assert len(stemma.generate(case.model, [prompt], max_new_tokens=40, ignore_eos=True)[0].ids) == 40
    with pytest.raises(UsageError, match="max_new_tokens=40"):
        stemma.generate(case.model, [prompt], max_new_tokens=41)
    with pytest.raises(UsageError, match="41 rows"):
        stemma.generate(case.model, [[20] * 45 + [END, START]], max_new_tokens=1)


def test_positions_of_another_form_are_refused(tmp_path: Path) -> None:
    model = glm(tmp_path).model
    with pytest.raises(UsageError, match="B T 2"):
        model(torch.tensor([[20, 21]]), position_ids=torch.tensor([[0, 1]]))


def test_a_text_with_blanks_is_filled() -> None:
    words = ["the king and the queen went to the house"] * 50
    specials = Specials(
        unk="[UNK]", pad="[PAD]", mask="[MASK]", bos="<|startofpiece|>", eos="<|endofpiece|>", cls="[gMASK]"
    )
    tokenizer = Tokenizer.train("wordpiece", words, 60, specials)
    model = stemma.build("glm-base", layers=2, vocab=60, d_model=32, heads=4, d_ff=64, context=60)
    model.tokenizer = tokenizer
    model.text = spec.edit(model.text, {"blanks": ("[MASK]", "[gMASK]")})
    known = blanks.blank_tokens(model)
    assert known == blanks.BlankTokens(tokenizer.bos_id, (tokenizer.mask_id, tokenizer.cls_id), tokenizer.cls_id)
    assert generation_config.eos_ids(model) == (tokenizer.eos_id,)
    plain = tokenizer.encode("the king")
    assert blanks.prompt(model, "the king") == [*plain, *([] if known.end in plain else [known.end]), known.start]
    asked = blanks.prompt(model, "the [MASK] king")
    assert tokenizer.mask_id in asked and asked[-1] == known.start
    out = stemma.generate(model, ["the [MASK] king", "the queen"], max_new_tokens=5)
    assert all(isinstance(r.text, str) for r in out)
    filled = stemma.fill(model, "the [MASK] king and [MASK] queen", max_new_tokens=4)
    assert len(filled.spans) == 2 and "king and" in filled.text
    with pytest.raises(UsageError, match=r"no \[MASK\]"):
        stemma.fill(model, "the king")


def test_a_decoder_without_blanks_keeps_its_session(tmp_path: Path) -> None:
    model = written(tmp_path, CHAT2, drawn(chatglm.second_shapes(3, 32, 44, VOCAB, 4, 2, 8)))
    assert type(begin(model, [[5, 6]], 2)) is Session


PUBLISHED: dict[str, dict[str, Any]] = {
    "glm-10b": {
        "architectures": ["GLMModel"], "attention_dropout_prob": 0.1, "attention_scale": 1.0,
        "auto_map": {"AutoModelForSeq2SeqLM": "modeling_glm.GLMForConditionalGeneration"},
        "block_position_encoding": True, "checkpoint_num_layers": 1, "embedding_dropout_prob": 0.1, "hidden_size": 4096,
        "initializer_range": 0.02, "max_sequence_length": 1024, "model_type": "glm", "num_attention_heads": 64,
        "num_layers": 48, "output_dropout_prob": 0.1, "output_predict": True, "parallel_output": True,
        "pool_token": "cls", "relative_encoding": False, "spell_func": "lstm", "spell_length": None,
        "torch_dtype": "float16", "vocab_size": 50_304,
    },
    "glm-515m": {
        "attention_dropout_prob": 0.1, "attention_scale": 1.0, "block_position_encoding": True, "hidden_size": 1152,
        "max_sequence_length": 512, "model_type": "glm", "num_attention_heads": 18, "num_layers": 30,
        "layernorm_epsilon": 1e-5, "use_scaled_init_for_output_weights": True, "vocab_size": 30_592,
    },
    "chatglm-6b": {
        "architectures": ["ChatGLMModel"], "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
        "bos_token_id": 130_004, "eos_token_id": 130_005, "mask_token_id": 130_000, "gmask_token_id": 130_001,
        "pad_token_id": 3, "hidden_size": 4096, "inner_hidden_size": 16_384, "layernorm_epsilon": 1e-05,
        "max_sequence_length": 2048, "model_type": "chatglm", "num_attention_heads": 32, "num_layers": 28,
        "position_encoding_2d": True, "pre_seq_len": None, "prefix_projection": False, "quantization_bit": 0,
        "torch_dtype": "float16", "transformers_version": "4.27.1", "use_cache": True, "vocab_size": 130_528,
    },
    "chatglm3-6b": {
        "architectures": ["ChatGLMModel"], "add_bias_linear": False, "add_qkv_bias": True, "model_type": "chatglm",
        "apply_query_key_layer_scaling": True, "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0, "attention_softmax_in_fp32": True, "bias_dropout_fusion": True,
        "ffn_hidden_size": 13_696, "fp32_residual_connection": False, "hidden_dropout": 0.0, "hidden_size": 4096,
        "kv_channels": 128, "layernorm_epsilon": 1e-05, "multi_query_attention": True, "multi_query_group_num": 2,
        "num_attention_heads": 32, "num_layers": 28, "original_rope": True, "padded_vocab_size": 65_024,
        "post_layer_norm": True, "rmsnorm": True, "seq_length": 8192, "use_cache": True, "torch_dtype": "float16",
        "tie_word_embeddings": False, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 65_024,
    },
}  # fmt: skip


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_configs_give_the_published_size(size: str) -> None:
    found, owner, _, unused = read_design(PUBLISHED[size])
    declared = families.design(size)
    assert found.name == size and owner is families.family(size) and found.dims == declared.dims
    for part in ("position", "norm", "residual", "attention", "mask", "mlp", "heads", "dropout", "embed_norm"):
        assert getattr(found.arch, part) == getattr(declared.arch, part), part
    assert found.text.blank_ids == declared.text.blank_ids and found.text.eos_ids == declared.text.eos_ids
    assert all(unused.values())
