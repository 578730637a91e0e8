"""Meta's layout: files made here from transformers' models by the published rules, read, compared, written back."""

from __future__ import annotations

import base64
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers as hf

import oracle
import stemma
from stemma.errors import CheckpointError, UsageError
from stemma.formats import meta
from stemma.nn.parts import MLP, Llama3Scaling
from stemma.text import Tokenizer, ranks, spm

# a width whose inner width 8d/3, rounded up to a multiple of 8, divides by four
SMALL = dict(vocab_size=96, hidden_size=48, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=4, rms_norm_eps=1e-5, pad_token_id=None, max_position_embeddings=64)  # fmt: skip
PARAMS = {"dim": 48, "n_layers": 3, "n_heads": 4, "vocab_size": -1, "multiple_of": 8, "norm_eps": 1e-05}
IDS = torch.randint(0, 96, (2, 21), generator=torch.Generator().manual_seed(3))


def reference(**fields: Any) -> Any:
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**{**SMALL, **fields}))
    oracle.jitter(model, 1)
    return model.eval()


def neighbours(w: torch.Tensor, width: int) -> torch.Tensor:
    """Meta's order of rows: of each head rows 0, D/2, 1, D/2 + 1, ..."""
    order = [
        h * width + i + half * width // 2 for h in range(len(w) // width) for i in range(width // 2) for half in (0, 1)
    ]
    return w[order]


def named(model: Any) -> dict[str, torch.Tensor]:
    """The model's tensors by Meta's names, in Meta's order of rows."""
    c, w = model.config, model.state_dict()
    out = {"tok_embeddings.weight": w["model.embed_tokens.weight"], "norm.weight": w["model.norm.weight"],
           "output.weight": w["lm_head.weight"]}  # fmt: skip
    for i in range(c.num_hidden_layers):
        a, b = f"model.layers.{i}", f"layers.{i}"
        for x in "qkvo":
            t = w[f"{a}.self_attn.{x}_proj.weight"]
            out[f"{b}.attention.w{x}.weight"] = neighbours(t, c.head_dim) if x in "qk" else t
        for theirs, ours in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
            out[f"{b}.feed_forward.{theirs}.weight"] = w[f"{a}.mlp.{ours}_proj.weight"]
        out[f"{b}.attention_norm.weight"] = w[f"{a}.input_layernorm.weight"]
        out[f"{b}.ffn_norm.weight"] = w[f"{a}.post_attention_layernorm.weight"]
    return out


def cut(name: str, tensor: torch.Tensor, n: int, by_token: bool) -> list[torch.Tensor]:
    if "norm" in name:
        return [tensor] * n
    by_column = name.endswith(("wo.weight", "w2.weight")) or (name.startswith("tok_") and not by_token)
    return [t.clone() for t in tensor.chunk(n, 1 if by_column else 0)]


def written(folder: Path, model: Any, n: int = 1, by_token: bool = False, extra: bool = True, **params: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(n)]
    for name, tensor in named(model).items():
        for shard, part in zip(shards, cut(name, tensor, n, by_token), strict=True):
            shard[name] = part
    for k, shard in enumerate(shards):
        if extra:
            shard["rope.freqs"] = torch.arange(6.0)
        torch.save(shard, folder / f"consolidated.{k:02d}.pth")
    (folder / "params.json").write_text(json.dumps({**PARAMS, **params}))
    return folder


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def same_files(a: Path, b: Path) -> None:
    names = sorted(f.name for f in a.iterdir())
    assert names == sorted(f.name for f in b.iterdir())
    for name in names:
        if name.endswith(".pth"):
            x, y = (torch.load(f / name, weights_only=True) for f in (a, b))
            assert x.keys() - {"rope.freqs"} == y.keys()
            for key, value in y.items():
                assert value.dtype == x[key].dtype and torch.equal(value, x[key]), (name, key)
                assert value.untyped_storage().nbytes() == value.nbytes
        else:
            assert (a / name).read_bytes() == (b / name).read_bytes()


# ---------------------------------------------------------------- reading and writing


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("kv", [4, 2])
def test_both_ways(tmp_path: Path, n: int, by_token: bool, kv: int) -> None:
    if kv % n:
        pytest.skip("more shards than key heads")
    model = reference(num_key_value_heads=kv)
    heads = {"n_kv_heads": kv} if kv < 4 else {}
    folder = written(tmp_path / "a", model, n, by_token, **heads)
    ours = stemma.load(folder)
    torch.testing.assert_close(logits(ours), logits(model), rtol=1e-5, atol=1e-5)
    assert ours.family.name in ("llama", "llama2") and not ours.arch.heads.lm.tied and ours.dims.vocab == 96
    assert set(ours.ledger.ignored) == {"rope.freqs"} and len(ours.ledger.loaded) == len(named(model))
    ours.save(tmp_path / "b", layout="meta")
    same_files(folder, tmp_path / "b")
    ours.save(tmp_path / "hf")
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = written(tmp_path / "a", reference().to(dtype), 2)
    ours = stemma.load(folder, dtype="auto")
    assert ours.dtype == dtype
    ours.save(tmp_path / "b", layout="meta")
    same_files(folder, tmp_path / "b")
    assert stemma.load(folder).dtype == torch.float32


def test_from_a_hugging_face_folder_to_shards(tmp_path: Path) -> None:
    model = reference(num_key_value_heads=2)
    model.save_pretrained(tmp_path / "hf")
    ours = stemma.load(tmp_path / "hf")
    with pytest.warns(UserWarning, match="context a model is made: this one's is 64, and will be taken for 4096"):
        ours.save(tmp_path / "meta", layout="meta", shards=2)
    want = written(tmp_path / "want", model, 2, extra=False, n_kv_heads=2)
    for k in range(2):
        x, y = (torch.load(f / f"consolidated.{k:02d}.pth", weights_only=True) for f in (tmp_path / "meta", want))
        assert x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)
    torch.testing.assert_close(logits(stemma.load(tmp_path / "meta")), logits(model), rtol=1e-5, atol=1e-5)
    one = stemma.load(tmp_path / "meta")
    one.save(tmp_path / "one", layout="meta", shards=1)  # what is asked for counts more than what was read
    assert len(list((tmp_path / "one").glob("*.pth"))) == 1
    torch.testing.assert_close(logits(stemma.load(tmp_path / "one")), logits(model), rtol=0, atol=0)


def test_scaled_positions_and_tying(tmp_path: Path) -> None:
    scaled = dict(rope_type="llama3", rope_theta=5e5, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=8192)  # fmt: skip
    model = reference(rope_parameters=scaled | {"factor": 8.0})
    far = torch.randint(0, 96, (1, 500), generator=torch.Generator().manual_seed(5))
    folder = written(tmp_path / "a", model, rope_theta=500_000.0, use_scaled_rope=True)
    ours = stemma.load(folder)
    assert ours.arch.position.scaling == Llama3Scaling() and ours.arch.position.base == 5e5
    torch.testing.assert_close(logits(ours, far), logits(model, far), rtol=1e-5, atol=1e-5)
    tied = reference(rope_parameters=scaled | {"factor": 32.0}, tie_word_embeddings=True)
    folder = written(tmp_path / "b", tied, 2, by_token=True, rope_theta=500_000.0, use_scaled_rope=True)
    ours = stemma.load(folder)
    assert ours.arch.heads.lm.tied and ours.arch.position.scaling.factor == 32
    assert ours.ledger.tied == {"output.weight": "tok_embeddings.weight"}
    torch.testing.assert_close(logits(ours, far), logits(tied, far), rtol=1e-5, atol=1e-5)
    ours.save(tmp_path / "c", layout="meta")
    same_files(folder, tmp_path / "c")
    for file in folder.glob("*.pth"):  # the same model without the second copy
        part = torch.load(file, weights_only=True)
        del part["output.weight"]
        torch.save(part, file)
    ours = stemma.load(folder)
    assert ours.arch.heads.lm.tied
    ours.save(tmp_path / "d", layout="meta")
    same_files(folder, tmp_path / "d")


def test_the_meta_device_reads_shapes_only(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", reference(), 2)
    ours = stemma.load(folder, device="meta")
    assert ours.device.type == "meta"
    with pytest.raises(UsageError, match="nothing to save"):
        ours.save(tmp_path / "b", layout="meta")


@pytest.mark.parametrize(
    ("params", "vocab", "tied", "context"),
    [
        (dict(dim=4096, n_layers=32, n_heads=32, norm_eps=1e-6), 32_000, False, 2048),
        (dict(dim=8192, n_layers=80, n_heads=64, norm_eps=1e-5), 32_000, False, 2048),
        (dict(dim=4096, n_layers=32, n_heads=32, norm_eps=1e-5), 32_000, False, 4096),
        (dict(dim=8192, n_layers=80, n_heads=64, n_kv_heads=8, multiple_of=4096, ffn_dim_multiplier=1.3), 32_000, False, 4096),
        (dict(dim=4096, n_layers=32, n_heads=32, rope_theta=1e6), 32_016, False, 16_384),
        (dict(dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, multiple_of=1024, ffn_dim_multiplier=1.3, rope_theta=5e5, vocab_size=128_256), 128_256, False, 8192),
        (dict(dim=2048, n_layers=16, n_heads=32, n_kv_heads=8, ffn_dim_multiplier=1.5, rope_theta=5e5, use_scaled_rope=True), 128_256, True, 131_072),
        (dict(dim=48, n_layers=3, n_heads=4, max_seq_len=77), 99, False, 77),
    ],
)  # fmt: skip
def test_published_params(params: dict[str, Any], vocab: int, tied: bool, context: int) -> None:
    design, _ = meta.read_params(params, vocab, tied)
    assert design.dims.context == context and design.dims.vocab == vocab
    widths = {(4096, None): 11_008, (8192, None): 22_016, (8192, 1.3): 28_672, (4096, 1.3): 14_336, (2048, 1.5): 8192}
    if params["dim"] > 48:
        assert design.dims.d_ff == widths[params["dim"], params.get("ffn_dim_multiplier")]
        again, _ = meta.read_params(meta.write_params(design), vocab, tied)
        assert (again.arch, again.dims) == (design.arch, design.dims)
    assert meta.read_params(params, vocab, tied)[0].dims.kv == params.get("n_kv_heads", params["n_heads"])


def test_any_inner_width_can_be_said() -> None:
    for d_ff in (1, 7, 100, 127, 128, 129, 200, 1000):
        design, _ = meta.read_params({**PARAMS, **meta._width_rule(48, d_ff)}, 96, False)
        assert design.dims.d_ff == d_ff


# ---------------------------------------------------------------- refusals


def fails(folder: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as error:
        stemma.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"n_head": 4}, "no key 'n_head' is known; did you mean 'n_heads'"),
        ({"lora_args": {}}, "no key 'lora_args' is known"),
        ({"vocab_size": 95}, "vocab_size=95, but the embeddings have 96 rows"),
        ({"dim": "wide"}, "dim='wide' should be a whole number"),
        ({"norm_eps": -1.0}, "norm_eps=-1.0 should be a number above 0"),
        ({"use_scaled_rope": 1}, "use_scaled_rope=1 should be true or false"),
        ({"n_heads": 5}, "params.json does not describe a model"),
        ({"n_layers": 4}, "tensor 'layers.3.attention_norm.weight' is missing"),
        ({"n_layers": 2}, "a tensor 'layers.2.attention.wq.weight' for which this model has no place"),
        ({"multiple_of": 256}, r"'layers.0.feed_forward.w1.weight' has shape \[128, 48\] .* needs \[256, 48\]"),
    ],
)
def test_refusals_of_params(tmp_path: Path, params: dict[str, Any], words: str) -> None:
    fails(written(tmp_path, reference(), **params), words)


def test_params_without_a_needed_key(tmp_path: Path) -> None:
    folder = written(tmp_path, reference())
    (folder / "params.json").write_text(json.dumps({k: v for k, v in PARAMS.items() if k != "n_layers"}))
    fails(folder, "has no 'n_layers'")
    (folder / "params.json").write_text("{")
    fails(folder, "is not JSON")


def test_damaged_and_missing_shards(tmp_path: Path) -> None:
    folder = written(tmp_path, reference(), 4)
    last = (folder / "consolidated.03.pth").read_bytes()
    (folder / "consolidated.03.pth").unlink()
    fails(folder, "over 3 shards, but params.json needs .* is every shard")
    (folder / "consolidated.03.pth").write_bytes(last[: len(last) // 2])
    fails(folder, "consolidated.03.pth cannot be read as plain tensors")
    (folder / "consolidated.03.pth").write_bytes(last)
    (folder / "consolidated.01.pth").unlink()
    fails(folder, "consolidated.01.pth is missing")
    for file in folder.glob("*.pth"):
        file.unlink()
    fails(folder, "beside params.json should be consolidated.00.pth")


def test_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    folder = written(tmp_path, reference(), 2)
    part = torch.load(folder / "consolidated.01.pth", weights_only=True)
    torch.save(part | {"layers.0.extra": torch.zeros(2)}, folder / "consolidated.01.pth")
    fails(folder, "consolidated.01.pth holds 'layers.0.extra', unlike consolidated.00.pth")
    torch.save({k: v for k, v in part.items() if k != "norm.weight"}, folder / "consolidated.01.pth")
    fails(folder, "consolidated.01.pth lacks 'norm.weight'")
    torch.save(part | {"norm.weight": torch.zeros(48, dtype=torch.int8)}, folder / "consolidated.01.pth")
    fails(folder, "'norm.weight' is of type torch.int8; only unquantised weights")
    torch.save(part | {"norm.weight": torch.zeros(5)}, folder / "consolidated.01.pth")
    fails(folder, "'norm.weight' should have one shape in all shards")


def test_no_code_is_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "sprung"), "w")

    folder = written(tmp_path / "a", reference())
    torch.save({"tok_embeddings.weight": Trap()}, folder / "consolidated.00.pth")
    fails(folder, "holds objects or code, which are not run")
    assert not (tmp_path / "sprung").exists()


def test_what_cannot_be_written(tmp_path: Path) -> None:
    ours = stemma.load(written(tmp_path / "a", reference(), 2))
    with pytest.raises(UsageError, match="shards=3 does not divide this model's heads of 4"):
        ours.save(tmp_path / "b", layout="meta", shards=3)
    with pytest.raises(UsageError, match="shards=2 is for layout='meta'"):
        ours.save(tmp_path / "b", shards=2)
    with pytest.raises(UsageError, match=r"layout 'mete' is not known.*did you mean 'meta'"):
        ours.save(tmp_path / "b", layout="mete")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"holds a config.json, which says another layout"):
        ours.save(tmp_path / "c", layout="meta")
    for name, changes, words in (
        ("gpt2", {}, "Meta's layout is for rotary positions"),
        ("mistral", {}, "cannot express arch.mask"),
        ("llama", {"arch.mlp": MLP("relu", bias=False)}, "cannot express arch.mlp"),
        ("llama", {"arch.attention.bias": True}, "cannot express arch.attention.bias=True"),
        (
            "llama",
            {"arch.position.scaling": Llama3Scaling(factor=4.0)},
            "cannot express arch.position.scaling.factor=4.0",
        ),
        ("llama", {"dims.head_dim": 20}, "cannot express dims.head_dim=20"),
        ("llama", {"arch.heads.lm": None}, "cannot express arch.heads.lm"),
    ):
        size = next(iter(stemma.families.tree()[name].sizes))
        model = stemma.build(
            size, changes, d_model=48, layers=1, heads=4, d_ff=128, vocab=96, kv_heads=None, context=64
        )
        with pytest.raises(UsageError, match=words):
            model.save(tmp_path / "d", layout="meta")
    assert not (tmp_path / "b").exists() and not (tmp_path / "d").exists()


# ---------------------------------------------------------------- tokenizers

TEXTS = [
    "The cat sat on the mat, and the dog sat by the door; nobody knew why they were waiting there all day.",
    "In 1984 there were 365 days and 12 months: 5.5 x 10^3 things happened, about 42% of them on Sundays.",
    "def f(x):\n    return x + 1  # add one\n\n\tprint('it isn't so')\nCafé naïve Straße 東京 это 🙂 end.",
]
TRICKY = [*TEXTS, "", " ", "   both   ", "\n\n\t 7\n\n8  9", "it's they'LL", "x" * 40, "a\u0301 ﬁ ½", "<s></s>"]


def trained(prefix: bool = True) -> bytes:
    raw = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3), model_writer=raw, vocab_size=420, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        split_digits=True, add_dummy_prefix=prefix, hard_vocab_limit=False, num_threads=1, minloglevel=3,
    )  # fmt: skip
    return raw.getvalue()


def test_tokenizer_of_llama(tmp_path: Path) -> None:
    raw = trained()
    theirs = sentencepiece.SentencePieceProcessor(model_proto=raw)
    model = reference(vocab_size=theirs.vocab_size() + 3)
    folder = written(tmp_path / "a", model)
    (folder / "tokenizer.model").write_bytes(raw)
    ours = stemma.load(folder)
    for text in TRICKY:
        assert ours.tokenizer.encode(text) == [1, *theirs.encode(text)]
    assert (ours.text.bos_id, ours.text.eos_id) == (1, 2)
    ours.save(tmp_path / "b", layout="meta")
    same_files(folder, tmp_path / "b")  # the bytes that were read
    # through another layout the file is made anew
    ours.save(tmp_path / "hf")
    stemma.load(tmp_path / "hf").save(tmp_path / "c", layout="meta")
    made = sentencepiece.SentencePieceProcessor(model_proto=(tmp_path / "c" / "tokenizer.model").read_bytes())
    for text in TRICKY:
        assert made.encode(text) == theirs.encode(text)
    assert (made.bos_id(), made.eos_id(), made.pad_id(), made.unk_id()) == (1, 2, -1, 0)
    assert stemma.load(tmp_path / "c").tokenizer.encode("cat 12") == [1, *theirs.encode("cat 12")]
    small = reference(vocab_size=theirs.vocab_size() - 1)
    folder = written(tmp_path / "d", small)
    (folder / "tokenizer.model").write_bytes(raw)
    fails(folder, "but the model only")
    assert stemma.formats.load(folder, tokenizer=False).tokenizer is None


def test_tokenizer_as_transformers_saves_it(tmp_path: Path) -> None:
    """Another form of the same model, without its unknown token: the file made of it is SentencePiece's own again."""
    (tmp_path / "tokenizer.model").write_bytes(trained())
    hf.LlamaTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "hf")
    ours = Tokenizer.load(tmp_path / "hf")
    assert ours.encode(" a") == ours.encode("a") and ours._core.model.unk_token is None
    made = sentencepiece.SentencePieceProcessor(model_proto=spm.dump(spm.describe(ours._core, ours.specials)))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=trained())
    for text in TRICKY:
        assert made.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("kind", ["spm-bpe", "unigram"])
def test_sentencepiece_files_made_from_our_own_tokenizers(kind: str) -> None:
    ours = Tokenizer.train(kind, TEXTS * 3, 400, stemma.text.Specials(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>"))
    model = spm.describe(ours._core, ours.specials)
    raw = spm.dump(model)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=raw)
    for text in TRICKY[:-1]:
        assert theirs.encode(text) == ours.encode(text, add_special=False), text
    again = spm.parse(raw, "x")
    assert [p[0] for p in again.pieces] == [p[0] for p in model.pieces] and again.charsmap == model.charsmap
    assert (again.bpe, again.prefix, again.squeeze, again.unk, again.bos, again.eos, again.pad) == (
        model.bpe, model.prefix, model.squeeze, model.unk, model.bos, model.eos, model.pad,
    )  # fmt: skip


def byte_ranks() -> dict[bytes, int]:
    """A small vocabulary with ranks: bytes, then merges found in a text, most frequent first."""
    known = {bytes([b]): b for b in range(256)}
    words = [" ".join(TEXTS).encode()[i : i + k] for k in (2, 3, 4) for i in range(0, 280, 2)]
    for word in sorted(set(words), key=lambda w: (len(w), w)):
        if any(word[:k] in known and word[k:] in known for k in range(1, len(word))):
            known[word] = len(known)
    return {word: rank for word, rank in known.items() if rank < len(known) // 2 * 2}


def by_ranks(known: dict[bytes, int], text: bytes) -> list[int]:
    """The pair of neighbours whose join has the lowest rank joins, the leftmost first, until none has one."""
    parts = [text] if text in known else [text[i : i + 1] for i in range(len(text))]
    while True:
        pairs = [(known[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in known]
        if not pairs:
            return [known[p] for p in parts]
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def test_tokenizer_of_llama_3(tmp_path: Path) -> None:
    import regex

    known = byte_ranks()
    raw = b"".join(base64.b64encode(t) + f" {r}\n".encode() for t, r in known.items())
    model = reference(vocab_size=len(known) + 256)
    folder = written(tmp_path / "a", model, by_token=True)
    (folder / "tokenizer.model").write_bytes(raw)
    ours = stemma.load(folder)
    start = len(known)
    for text in [*TEXTS, "it's  12345\n\n7", "", "  x"]:
        words = regex.findall(ranks.LLAMA3, text)
        want = [i for word in words for i in by_ranks(known, word.encode())]
        assert ours.tokenizer.encode(text) == [start, *want]
        assert ours.tokenizer.decode(ours.tokenizer.encode(text)) == text
    assert (ours.text.bos_id, ours.text.eos_id, ours.text.tokenizer) == (start, start + 1, "bpe")
    assert ours.tokenizer.id("<|eot_id|>") == start + 9 and ours.tokenizer.vocab_size == len(known) + 256
    ours.save(tmp_path / "hf")
    other = stemma.load(tmp_path / "hf")
    other.save(tmp_path / "b", layout="meta", shards=2)  # made anew from tokenizer.json
    assert (tmp_path / "b" / "tokenizer.model").read_bytes() == raw
    part = torch.load(tmp_path / "b" / "consolidated.01.pth", weights_only=True)["tok_embeddings.weight"]
    assert list(part.shape) == [(len(known) + 256) // 2, 48]  # by token, as Llama 3's code wants it
    (folder / "tokenizer.model").write_bytes(raw.replace(b" 300\n", b" x\n"))
    fails(folder, r"tokenizer.model:301 should be a token in base64")
    (folder / "tokenizer.model").write_bytes(raw.replace(b" 300\n", b" 301\n"))
    fails(folder, "should give the ranks")


def test_a_tokenizer_that_the_layout_does_not_hold(tmp_path: Path) -> None:
    ours = stemma.load(written(tmp_path / "a", reference(vocab_size=400)))
    ours.tokenizer = Tokenizer.train("wordpiece", TEXTS, 200, stemma.text.Specials(unk="[UNK]"))
    with pytest.raises(UsageError, match=r"set model.tokenizer = None to save the weights alone"):
        ours.save(tmp_path / "b", layout="meta")
