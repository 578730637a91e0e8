"""Two streams, memory and drawn orders, against the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import stemma
from oracle import inputs, saved
from stemma import disk
from stemma.errors import CheckpointError, UsageError
from stemma.nn.cache import Cache
from stemma.nn.inputs import Inputs, StreamInputs
from stemma.nn.parts import Prefix
from stemma.text import Specials, Tokenizer
from tiny import answers, build, run, tiny

ROWS, LENGTH = 3, 17
LM = ("xlnet", "xlnet-memory", "xlnet-relu", "xlnet-untied")


def drawn(rows: int, length: int, targets: int, seed: int = 2) -> dict[str, torch.Tensor]:
    """An order of the tokens of each row, of which the last `targets` are predicted: the first of these sees the
    others only, and so on."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(length, generator=generator) for _ in range(rows)])
    rank = order.argsort(1).clamp(min=length - targets - 1)  # what is not predicted is seen by all
    hidden = (rank[:, :, None] <= rank[:, None, :]) & (rank[:, None, :] >= length - targets)
    mapping = torch.nn.functional.one_hot(order[:, length - targets :], length)
    return {"perm_mask": hidden.float(), "target_mapping": mapping.float()}


def both(ours: Any, theirs: Any, batch: dict[str, torch.Tensor], **more: Any) -> tuple[Any, Any]:
    with torch.no_grad():
        mine = ours(**batch, **{k: v[0] if k == "mems" else v for k, v in more.items()})
        reference = theirs(**batch, **{k: v[1] if k == "mems" else v for k, v in more.items()})
    return mine, reference


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-5)


def flipped(mems: Any) -> list[torch.Tensor]:
    """The reference's memory with the batch first."""
    return [m.transpose(0, 1) for m in mems]


@pytest.mark.parametrize("case", LM)
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("given", ["both", "no segments", "no padding", "order alone", "targets alone"])
def test_both_streams_equal_the_reference(case: str, left: bool, given: str, tmp_path: Path) -> None:
    theirs, batch = saved(case, tmp_path), inputs(case, left=left)
    ours = stemma.load(tmp_path)
    asked = drawn(ROWS, LENGTH, 6)
    match given:
        case "no segments":
            del batch["token_type_ids"]
        case "no padding":
            del batch["attention_mask"]
        case "order alone":
            del asked["target_mapping"]
        case "targets alone":
            del asked["perm_mask"]
    mine, reference = both(ours, theirs, batch, **asked)
    assert same(mine.logits, reference.logits)
    assert all(same(a, b) for a, b in zip(mine.mems, flipped(reference.mems), strict=True))
    targets = torch.randint(0, 95, mine.logits.shape[:2])
    targets[0, :2] = -100
    mine, reference = both(ours, theirs, batch, labels=targets, **asked)
    assert abs(mine.loss - reference.loss) <= 1e-5


def test_a_query_that_sees_nothing_weighs_all_alike(tmp_path: Path) -> None:
    """The first token of an order without a memory: softmax of equal scores, as the reference has it."""
    theirs = saved("xlnet", tmp_path)
    ours = stemma.load(tmp_path)
    batch = {"input_ids": inputs("xlnet")["input_ids"]}
    mine, reference = both(ours, theirs, batch, **drawn(ROWS, LENGTH, LENGTH))
    assert same(mine.logits, reference.logits)


def test_predictions_that_ask_nothing(tmp_path: Path) -> None:
    """Rows of zeros fill up a batch whose texts have different numbers of targets."""
    theirs = saved("xlnet", tmp_path)
    ours = stemma.load(tmp_path)
    asked = drawn(ROWS, LENGTH, 6)
    asked["target_mapping"][1, 4:] = 0
    mine, reference = both(ours, theirs, inputs("xlnet"), **asked)
    assert same(mine.logits, reference.logits)


@pytest.mark.parametrize("case", LM)
@pytest.mark.parametrize("streams", [False, True])
def test_memory_over_segments_equals_the_reference(case: str, streams: bool, tmp_path: Path) -> None:
    """Segments of one text, of which each reads the memory that the one before it returned; the text is longer than
    what a memory of 7 tokens holds."""
    theirs = saved(case, tmp_path)
    ours = stemma.load(tmp_path)
    memory: Any = (None, None)
    for seed, length in enumerate((17, 11, 1, 12)):
        batch = inputs(case, length=length, seed=seed)
        batch["attention_mask"][:, -1] = 1
        asked = drawn(ROWS, length, min(3, length), seed) if streams else {}
        mine, reference = both(ours, theirs, batch, mems=memory, **asked)
        assert same(mine.logits, reference.logits)
        memory = mine.mems, reference.mems
        assert all(same(a, b) for a, b in zip(mine.mems, flipped(reference.mems), strict=True))
    assert mine.mems[0].shape[1] == (7 if case == "xlnet-memory" else 41)


@pytest.mark.parametrize("case", ["xlnet-classify", "xlnet-tag", "xlnet-answer"])
def test_task_heads_read_a_memory(case: str, tmp_path: Path) -> None:
    theirs = saved(case, tmp_path)
    ours = stemma.load(tmp_path)
    batch = inputs(case, left=True)
    first, second = both(ours, theirs, batch)
    mine, reference = both(ours, theirs, batch, mems=(first.mems, second.mems))
    want = (
        reference.logits if "logits" in reference else torch.stack([reference.start_logits, reference.end_logits], -1)
    )
    assert same(answers(mine), want) and not same(answers(mine), answers(first))


def test_gradients_stop_at_the_memory(tmp_path: Path) -> None:
    saved("xlnet", tmp_path)
    ours = stemma.load(tmp_path)
    first = ours(**inputs("xlnet"))
    assert all(not m.requires_grad for m in first.mems)
    asked = drawn(ROWS, LENGTH, 5)
    ids = inputs("xlnet", seed=8)
    ours(**ids, **asked, mems=first.mems, labels=ids["input_ids"][:, :5]).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in ours.parameters())


def test_two_streams_are_one_graph() -> None:
    torch._dynamo.reset()
    model = build(tiny("xlnet"))
    ids = torch.randint(3, 83, (2, 19))
    asked = drawn(2, 19, 4)
    mems = run(model, {"input_ids": ids}).mems
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = compiled(ids, **asked, mems=mems)
    assert torch.allclose(got.logits, model(ids, **asked, mems=mems).logits, atol=1e-5)
    got.logits.sum().backward()


def test_both_streams_in_training_are_one_function() -> None:
    model = build(tiny("xlnet")).double()
    batch = {"input_ids": torch.randint(3, 83, (2, 37)), **drawn(2, 37, 9)}
    assert (run(model.train(), batch).hidden - run(model.eval(), batch).hidden).abs().max() < 1e-10


def test_a_query_with_a_cache_sees_what_lies_before_its_place() -> None:
    """Not the token at its place, nor any after it."""
    design = tiny("xlnet")
    model = build(design).double().eval()
    assert model.encoder is not None
    ids = torch.randint(3, 83, (1, 6))

    def query(ids: torch.Tensor) -> torch.Tensor:
        cache = Cache(model.arch, len(model.encoder.order), 1, 8, True, Prefix())
        cache.prefix = torch.tensor([[0]])  # every token sees those before it and itself
        streams = StreamInputs(places=torch.tensor([[3]]))
        return model.encode(Inputs(ids, position_ids=torch.arange(6)[None], cache=cache, streams=streams))

    first, own, before = query(ids), query(_other(ids, 3)), query(_other(ids, 2))
    assert torch.equal(first, own) and torch.equal(first, query(_other(ids, 5)))
    assert (first - before).abs().max() > 1e-6


def _other(ids: torch.Tensor, place: int) -> torch.Tensor:
    changed = ids.clone()
    changed[0, place] = 3 + (changed[0, place] - 2) % 80
    return changed


def test_positions_of_ones_own_are_the_rows(tmp_path: Path) -> None:
    """Distances of positions that are given are those of the places of a row, where they are the same."""
    model = build(tiny("xlnet")).double()
    batch = {"input_ids": torch.randint(3, 83, (2, 20)), **drawn(2, 20, 5)}
    at = torch.arange(20)[None] + 1000
    assert (run(model, batch).hidden - run(model, batch | {"position_ids": at}).hidden).abs().max() < 1e-9


def test_the_full_pass_writes_what_the_reference_writes(tmp_path: Path) -> None:
    """Without a cache the reference hides the place that is asked for, and nothing else."""
    theirs = saved("xlnet", tmp_path)
    ours = stemma.load(tmp_path)
    theirs.config.use_mems_eval = False
    text = torch.tensor([[9, 33, 21, 50, 8]])
    # its own loop hands on a mask that its network then refuses
    want = theirs.generate(text, do_sample=False, max_new_tokens=9, use_mems=False, eos_token_id=None)
    for _ in range(9):
        length = text.shape[1]
        ids = torch.nn.functional.pad(text, (0, 1))
        hidden = torch.zeros(1, length + 1, length + 1)
        hidden[:, :, -1] = 1
        asked = {"perm_mask": hidden, "target_mapping": torch.eye(length + 1)[None, -1:]}
        text = torch.cat([text, run(ours, {"input_ids": ids, **asked}).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(text, want)
    first = stemma.generate(ours, [text[0, :5].tolist()], max_new_tokens=1, ignore_eos=True)
    assert first[0].ids == want[0, 5:6].tolist()


@pytest.mark.parametrize("lengths", [[6], [7, 7], [4, 11, 1, 7, 11, 2, 9]], ids=["one", "even", "ragged"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_row_is_written_as_it_is_alone(lengths: list[int], beams: int, tmp_path: Path) -> None:
    saved("xlnet", tmp_path)
    model = stemma.load(tmp_path)
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, 95, (n,), generator=generator).tolist() for n in lengths]
    together = stemma.generate(model, rows, max_new_tokens=9, num_beams=beams)
    assert [r.ids for r in together] == [
        stemma.generate(model, [r], max_new_tokens=9, num_beams=beams)[0].ids for r in rows
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"perm_mask": torch.zeros(2, 4, 5)}, "perm_mask must be 2 5 5, not 2 4 5"),
        ({"target_mapping": torch.zeros(2, 5)}, "target_mapping must be 2 K 5"),
        ({"target_mapping": torch.ones(2, 1, 5)}, "at most one 1"),
        ({"mems": [torch.zeros(2, 3, 36)]}, "one tensor a layer: 3, not 1"),
        ({"mems": [torch.zeros(3, 2, 36)] * 3}, "mems must be 2 M 36"),
        ({"mems": [torch.zeros(2, 3, 36)] * 3, "documents": torch.zeros(2, 5)}, "either mems or documents"),
        ({"mems": [torch.zeros(2, 3, 36)] * 3, "position_ids": torch.arange(5)[None]}, "do not go with mems"),
        ({"attention": "causal"}, "open mask"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], words: str) -> None:
    model = build(tiny("xlnet"))
    with pytest.raises(UsageError, match=words):
        model(torch.full((2, 5), 7), **given)


@pytest.mark.parametrize("given", ["perm_mask", "target_mapping", "mems"])
def test_other_models_refuse_what_streams_take(given: str) -> None:
    with pytest.raises(UsageError, match=f"{given} was given"):
        build(tiny("bert"))(torch.full((1, 5), 7), **{given: torch.zeros(1, 5, 5)})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("attn_type", "uni", "attn_type='uni' is not supported; only 'bi' is"),
        ("bi_data", True, "bi_data=True is not supported"),
        ("clamp_len", 400, "clamp_len=400 is not supported"),
        ("same_length", True, "same_length=True is not supported"),
        ("untie_r", False, "untie_r=False is not supported"),
        ("architectures", ["XLNetForQuestionAnswering"], "'XLNetForQuestionAnswering' is not supported"),
        ("mem_len", -3, "mem_len must be at least 1"),
    ],
)
def test_configs_that_nothing_published_has_are_refused(key: str, value: Any, words: str, tmp_path: Path) -> None:
    saved("xlnet", tmp_path)
    raw = disk.read_json(tmp_path / "config.json")
    disk.write_json(tmp_path / "config.json", {**raw, key: value})
    with pytest.raises(CheckpointError, match=words):
        stemma.load(tmp_path)


@pytest.mark.parametrize("task", ["classify", "choose"])
def test_a_pretrained_body_takes_a_head_that_reads_the_final_place(task: str, tmp_path: Path) -> None:
    saved("xlnet", tmp_path / "a")
    model = stemma.load(tmp_path / "a", task=task)
    assert set(model.ledger.new) == {"pooler.dense.weight", "pooler.dense.bias", "task.out.weight", "task.out.bias"}
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 5]])
    batch = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])}
    out = run(model, batch)
    assert torch.equal(out.pooled, model.pooler(out.hidden, torch.tensor([3, 3])))
    model.save(tmp_path / "b")
    again = stemma.load(tmp_path / "b")
    assert again.arch.heads == model.arch.heads and torch.equal(run(again, batch).logits, out.logits)
    assert disk.read_json(tmp_path / "b/config.json")["architectures"] == [
        "XLNetForSequenceClassification" if task == "classify" else "XLNetForMultipleChoice"
    ]


def texts() -> Any:
    """A small model with a tokenizer of its own."""
    words = ["the king and the queen went to the house"] * 50
    specials = Specials(pad="<pad>", eos="</s>", unk="<unk>", mask="<mask>", cls="<cls>", sep="<sep>")
    tokenizer = Tokenizer.train("unigram", words, 300, specials)
    model = build(tiny("xlnet", **{"dims.vocab": tokenizer.vocab_size}))
    model.tokenizer = tokenizer
    return model


def test_a_prompt_has_no_end_and_is_gone_on_from() -> None:
    model = texts()
    ids = model.tokenizer.encode("the king", add_special=False)
    assert ids != model.tokenizer.encode("the king")
    got, want = (stemma.generate(model, [p], max_new_tokens=5, ignore_eos=True)[0] for p in ("the king", ids))
    assert got.ids == want.ids and isinstance(got.text, str)


def test_masks_are_filled_by_queries_that_no_mask_misleads() -> None:
    """What stands in a mask's place is seen by nobody."""
    model = texts()
    mask = model.tokenizer.mask_id
    filled = stemma.fill(model, "the [MASK] and the [MASK] went", top=3)
    ids = model.tokenizer.encode("the <mask> and the <mask> went", allow_special=True)
    at = [i for i, t in enumerate(ids) if t == mask]
    assert len(filled.guesses) == len(at) == 2
    hidden = torch.zeros(1, len(ids), len(ids))
    hidden[:, :, at] = 1
    other = torch.tensor([[7 if t == mask else t for t in ids]])
    asked = {"perm_mask": hidden, "target_mapping": torch.eye(len(ids))[None, at]}
    best = run(model, {"input_ids": other, **asked}).logits[0].topk(3).indices
    assert [[g.id for g in row] for row in filled.guesses] == best.tolist()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_the_whole(dtype: str, tmp_path: Path) -> None:
    """The reference has no half precision under a mask: the same rounded weights, in fp32, stand for it."""
    saved("xlnet", tmp_path / "a")
    half = stemma.load(tmp_path / "a", dtype=dtype)
    half.save(tmp_path / "b")
    whole = stemma.load(tmp_path / "b")
    batch = inputs("xlnet") | drawn(ROWS, LENGTH, LENGTH if dtype == "bfloat16" else 6)  # some see nothing at all
    got, want = run(half, batch), run(whole, batch)
    assert got.logits.dtype == half.dtype
    assert (got.logits.float() - want.logits).abs().max() <= 0.03 * want.logits.abs().max()
    again, more = run(half, batch | {"mems": got.mems}), run(whole, batch | {"mems": want.mems})
    assert (again.logits.float() - more.logits).abs().max() <= 0.03 * more.logits.abs().max()


def pieces() -> list[tuple[str, float]]:
    names = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]
    return [(n, 0.0) for n in names] + [("▁", -3.0), ("▁the", -2.0), ("ing", -2.5)] + [(c, -4.0) for c in "egiknostK"]


def test_the_publishers_tokenizer_loads(tmp_path: Path) -> None:
    """`A <sep> <cls>`, with a segment of its own for the last."""
    theirs = hf.XLNetTokenizer(vocab=pieces())
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    for text in ("the King  is", "Kéiing", "it is"):
        assert ours.encode(text) == theirs(text)["input_ids"]
    a, b = ours.encode("the King", add_special=False), ours.encode("is it", add_special=False)
    ids, kinds = ours.encode_pair("the King", "is it")
    assert ids == [*a, 4, *b, 4, 3] == theirs("the King", "is it")["input_ids"]
    assert kinds == [0] * (len(a) + 1) + [1] * (len(b) + 1) + [2]


def test_pieces_without_the_rules_around_them_are_refused(tmp_path: Path) -> None:
    saved("xlnet", tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"\n\x03")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json must stand beside it"):
        stemma.load(tmp_path)
