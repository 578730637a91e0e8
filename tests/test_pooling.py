"""Texts as vectors, against the same computed of transformers' states; folders of sentence-transformers."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import stemma
from oracle import jitter, saved
from stemma.cli import main
from stemma.errors import CheckpointError, UsageError
from stemma.formats.hub import choose
from stemma.formats.sentences import Pooling
from stemma.text import Specials, Tokenizer

TEXTS = ["The king went to the house.", "A queen", "the house of the queen and the king " * 3, "king, king!", ""]
ROWS = [[5, 6, 7, 8], [9], [3, 4, 5, 6, 7, 8, 9, 10, 11], [6, 5]]


def tokenizer() -> Tokenizer:
    specials = Specials(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
    return Tokenizer.train("wordpiece", ["the king and the queen went to a house of stone ! , ."] * 9, 90, specials)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of transformers with a tokenizer beside it."""
    path = tmp_path_factory.mktemp("bert")
    words = tokenizer()
    config = hf.BertConfig(vocab_size=words.vocab_size, hidden_size=36, num_hidden_layers=2, num_attention_heads=3,
                           intermediate_size=50, max_position_embeddings=40)  # fmt: skip
    torch.manual_seed(0)
    model = hf.BertModel(config)
    jitter(model, 1)
    model.save_pretrained(path)
    words.save(path)
    return path


def wanted(folder: Path, texts: list[str], pool: str, normalize: bool, limit: int = 40) -> torch.Tensor:
    """Of transformers' states, a text at a time, with no padding anywhere."""
    theirs, words = hf.BertModel.from_pretrained(folder).eval(), hf.AutoTokenizer.from_pretrained(folder)
    out = []
    for text in texts:
        with torch.no_grad():
            found = theirs(**words(text, return_tensors="pt", truncation=True, max_length=limit))
        x = found.last_hidden_state[0]
        out.append({"mean": x.mean(0), "first": x[0], "last": x[-1], "max": x.amax(0),
                    "pooler": found.pooler_output[0]}[pool])  # fmt: skip
    y = torch.stack(out)
    return y / y.norm(dim=-1, keepdim=True) if normalize else y


def sentences(folder: Path, where: Path, mode: str, normalize: bool, more: tuple[str, ...] = ()) -> Path:
    """The folder with the files of sentence-transformers."""
    shutil.copytree(folder, where)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    kinds += [(f"{i + 2}_{kind}", kind) for i, kind in enumerate([*more, *(["Normalize"] if normalize else [])])]
    modules = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
               for i, (path, kind) in enumerate(kinds)]  # fmt: skip
    (where / "modules.json").write_text(json.dumps(modules))
    (where / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": False}))
    (where / "1_Pooling").mkdir()
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    flags = {f"pooling_mode_{m}": m == mode for m in modes}
    (where / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 36} | flags))
    return where


@pytest.mark.parametrize("pool", ["mean", "first", "last", "max", "pooler"])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_equal_the_reference(folder: Path, pool: Any, normalize: bool) -> None:
    """In batches with padding what each text gives alone."""
    model = stemma.load(folder)
    for batch in (1, 2, 32):
        got = stemma.embed(model, TEXTS, pool=pool, normalize=normalize, batch=batch)
        assert got.dtype == torch.float32 and got.shape == (len(TEXTS), 36)
        assert (got - wanted(folder, TEXTS, pool, normalize)).abs().max() <= 1e-5


def test_the_mean_at_length_one_is_what_is_meant(folder: Path) -> None:
    model = stemma.load(folder).train()
    assert (stemma.embed(model, TEXTS) - wanted(folder, TEXTS, "mean", True)).abs().max() <= 1e-5
    assert model.training  # as it was
    one = stemma.embed(model, TEXTS[0])
    assert one.shape == (1, 36) and stemma.embed(model, []).shape == (0, 36)


@pytest.mark.parametrize(
    "case", ["gpt2", "llama", "t5", "roberta-model", "albert-model", "electra-detect", "xlm-model"]
)
@pytest.mark.parametrize("pool", ["mean", "last", "max"])
def test_any_body_gives_vectors(case: str, pool: Any, tmp_path: Path) -> None:
    """Decoders too, and of an encoder-decoder its encoder: batches with padding equal texts that stand alone."""
    theirs = saved(case, tmp_path)
    body = theirs.get_encoder() if case == "t5" else getattr(theirs, theirs.base_model_prefix, theirs)
    got = stemma.embed(stemma.load(tmp_path), ROWS, pool=pool, normalize=False)
    for row, vector in zip(ROWS, got, strict=True):
        with torch.no_grad():
            x = body(torch.tensor([row]), attention_mask=torch.ones(1, len(row))).last_hidden_state[0]
        want = {"mean": x.mean(0), "last": x[-1], "max": x.amax(0)}[pool]
        assert (vector - want).abs().max() <= 1e-5


def test_a_language_is_told(tmp_path: Path) -> None:
    theirs = saved("xlm-model", tmp_path)
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad():
        want = theirs(ids, langs=torch.full_like(ids, 2)).last_hidden_state[0].mean(0)
    got = stemma.embed(stemma.load(tmp_path), ROWS[:1], normalize=False, language="de")[0]
    assert (got - want).abs().max() <= 1e-5


# ---------------------------------------------------------------- folders of sentence-transformers


@pytest.mark.parametrize(
    ("mode", "pool"), [("mean_tokens", "mean"), ("cls_token", "first"), ("max_tokens", "max"), ("lasttoken", "last")]
)
@pytest.mark.parametrize("normalize", [True, False])
def test_a_folder_says_how(folder: Path, mode: str, pool: str, normalize: bool, tmp_path: Path) -> None:
    where = sentences(folder, tmp_path / "s", mode, normalize)
    model = stemma.load(where)
    assert model.pooling == Pooling(pool, normalize, 12)
    with pytest.warns(UserWarning, match="1 of 5 texts are longer than 12 tokens"):
        got = stemma.embed(model, TEXTS)
    assert (got - wanted(folder, TEXTS, pool, normalize, limit=12)).abs().max() <= 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = stemma.embed(model, TEXTS, pool="first", normalize=True)  # what is said here goes before it
    assert (other - wanted(folder, TEXTS, "first", True, limit=12)).abs().max() <= 1e-5
    model.save(tmp_path / "again")
    again = stemma.load(tmp_path / "again")
    assert again.pooling == model.pooling
    plain = stemma.load(folder)
    plain.save(tmp_path / "again")  # a model without such files takes the place of one with them
    assert stemma.load(tmp_path / "again").pooling is None


def test_a_folder_whose_model_lies_deeper(folder: Path, tmp_path: Path) -> None:
    where = sentences(folder, tmp_path / "s", "mean_tokens", False)
    (where / "0_Transformer").mkdir()
    for file in where.iterdir():
        if file.is_file() and file.name != "modules.json":
            file.rename(where / "0_Transformer" / file.name)
    modules = json.loads((where / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (where / "modules.json").write_text(json.dumps(modules))
    model = stemma.load(where)
    assert model.pooling == Pooling("mean", False, 12) and model.tokenizer is not None


@pytest.mark.parametrize(("mode", "more", "word"), [("mean_sqrt_len_tokens", (), "mean_sqrt_len"), ("mean_tokens", ("Dense",), "Dense"), ("", (), "none")])  # fmt: skip
def test_ways_that_cannot_be_followed(
    folder: Path, mode: str, more: tuple[str, ...], word: str, tmp_path: Path
) -> None:
    """The model loads; only its own way to a vector is refused."""
    model = stemma.load(sentences(folder, tmp_path / "s", mode, True, more))
    with pytest.raises(UsageError, match=word):
        stemma.embed(model, TEXTS[:1])
    assert stemma.embed(model, TEXTS[:1], pool="mean").shape == (1, 36)


@pytest.mark.parametrize(
    ("file", "text", "word"),
    [
        ("modules.json", "{", "is not JSON"),
        ("modules.json", "{}", "list modules"),
        ("modules.json", '[{"type": "x.Pooling"}]', "list modules"),
        ("sentence_bert_config.json", '{"max_seq_length": "long"}', "max_seq_length"),
        ("1_Pooling/config.json", "[]", "holds a JSON list; an object was expected"),
    ],
)
def test_damaged_files_are_named(folder: Path, file: str, text: str, word: str, tmp_path: Path) -> None:
    where = sentences(folder, tmp_path / "s", "mean_tokens", True)
    (where / file).write_text(text)
    with pytest.raises(CheckpointError, match=word) as caught:
        stemma.load(where)
    assert file.split("/")[0] in str(caught.value) and "\n" not in str(caught.value)


def test_the_hub_brings_them() -> None:
    files = ["config.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "model.safetensors"]
    assert sorted(choose("org/x", [*files, "onnx/config.json"])) == sorted(files)


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("texts", "options", "word"),
    [
        (["a"], {"pool": "meen"}, "did you mean 'mean'"),
        (["a"], {"batch": 0}, "batch"),
        (["a"], {"language": "en"}, "no languages"),
        ([[]], {}, "text 0 is empty"),
        ([[5], [1000]], {}, "text 1 holds the token id 1000"),
        ([[1.5]], {}, "whole token ids"),
        ([3], {}, "whole token ids"),
    ],
)
def test_what_cannot_be_is_refused(folder: Path, texts: Any, options: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        stemma.embed(stemma.load(folder), texts, **options)


def test_a_pooler_and_a_tokenizer_must_be_there(tmp_path: Path) -> None:
    saved("xlm-model", tmp_path)
    model = stemma.load(tmp_path)
    with pytest.raises(UsageError, match="no pooler"):
        stemma.embed(model, [[5]], pool="pooler")
    with pytest.raises(CheckpointError, match="tokenizer"):
        stemma.embed(model, ["text"])


# ---------------------------------------------------------------- the command


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `stemma ARGS` in this process: (exit code, standard output, standard error)."""

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(list(args))
        return int(left.value.code or 0), *capsys.readouterr()

    return run


def test_the_command_prints_vectors(folder: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = call("embed", str(folder), *TEXTS[:3], "--batch", "2")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [r["text"] for r in rows] == TEXTS[:3]
    got = torch.tensor([r["vector"] for r in rows])
    assert (got - wanted(folder, TEXTS[:3], "mean", True)).abs().max() <= 1e-5
    code, out, _ = call("embed", str(folder), TEXTS[0], "--pool", "first", "--no-normalize")
    first = torch.tensor(json.loads(out)["vector"])
    assert code == 0 and (first - wanted(folder, TEXTS[:1], "first", False)[0]).abs().max() <= 1e-5


def test_the_command_compares(folder: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = call("embed", str(folder), *TEXTS[:3], "--similar")
    y = wanted(folder, TEXTS[:3], "mean", True)
    want = sorted([float(y[i] @ y[j]) for i in range(3) for j in range(i)], reverse=True)
    assert code == 0 and [float(line.split()[0]) for line in out.splitlines()] == pytest.approx(want, abs=1e-4)
    code, _, err = call("embed", str(folder), "one", "--similar")
    assert code == 2 and "at least two" in err
