"""Code: tokens for runs of spaces, filters of source files."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import transformers as hf
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import stemma
from stemma.cli import root
from stemma.data import Document, rules
from stemma.data.cleaning import clean
from stemma.data.steps import Code, parse
from stemma.errors import UsageError
from stemma.text import Specials, Tokenizer
from stemma.text.growing import without_runs
from stemma.train import resolve

WORDS = "def return value of the list self name yield import class None True for in range if not".split()  # noqa: SIM905
EOS = "<|endoftext|>"


def lines(seed: int, count: int = 200) -> list[str]:
    """Lines that look like code, indented by spaces."""
    draw = random.Random(seed)
    made = [" " * (4 * draw.randrange(6)) + " ".join(draw.choices(WORDS, k=draw.randint(2, 6))) for _ in range(count)]
    return ["\n".join(made[i : i + 10]) for i in range(0, count, 10)]


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    """GPT-2's kind, with a single special token behind all others and no run of spaces."""
    return Tokenizer.train("bpe", without_runs(lines(1)), 320, Specials(bos=EOS, eos=EOS))


@pytest.fixture(scope="module")
def grown(plain: Tokenizer) -> Tokenizer:
    return plain.grown(0, (), 25)


# ---------------------------------------------------------------- tokens


def test_runs_get_the_next_ids_and_nothing_else_changes(plain: Tokenizer, grown: Tokenizer) -> None:
    """24 tokens behind the others, the shortest first; a run is one of them, up to 25, and more are several."""
    size = plain.vocab_size
    assert grown.vocab_size == size + 24 and grown.id(EOS) == plain.id(EOS) == size - 1
    for n in range(2, 26):
        assert grown.encode(" " * n) == [size + n - 2], n
    assert len(grown.encode(" " * 26)) == 2
    for text in ("def name", "a b c", "x\ty\r\n", f"{EOS} é"):
        assert grown.encode(text) == plain.encode(text)
    # as in GPT-2's pattern, the last space of a run belongs to the word behind it
    before, after = plain.encode("\n"), plain.encode(" return")
    assert grown.encode("\n" + 8 * " " + "return") == [*before, size + 7 - 2, *after]
    assert grown.grown(0, (), 25) is grown and grown.special_ids == plain.special_ids
    more = grown.grown(2, ["<step>"])
    assert [more.id("<step>"), more.sentinel(1)] == [grown.vocab_size, grown.vocab_size + 1]


def test_a_vocabulary_with_some_runs_gets_the_others() -> None:
    """Of a text with runs some are learnt; then fewer are new, and every run is one token all the same."""
    known = Tokenizer.train("bpe", lines(1), 320, Specials(bos="<s>", eos="</s>", pad="<pad>"))
    held = [n for n in range(2, 26) if known.id("Ġ" * n) is not None]
    more = known.grown(0, (), 25)
    assert held and more.vocab_size == known.vocab_size + 24 - len(held)
    assert all(len(more.encode(" " * n, add_special=False)) == 1 for n in range(2, 26))
    assert [more.id(s) for s in ("<s>", "</s>", "<pad>")] == [known.id(s) for s in ("<s>", "</s>", "<pad>")]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([" ", "  ", " " * 7, " " * 33, "\t", "\r\n", "\n", "\x0b", "\xa0", "def", "é🙂", EOS])))
def test_no_white_space_is_lost(grown: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    ids = grown.encode(text, add_special=False)
    assert grown.decode(ids, skip_special=False) == text and not grown.special_ids & {*ids}
    assert list(grown.encode_flat([text]).ids) == ids


def test_the_files_are_read_by_transformers(grown: Tokenizer, tmp_path: Path) -> None:
    grown.save(tmp_path)
    again, theirs = Tokenizer.load(tmp_path), hf.AutoTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint == grown.fingerprint and again.vocab_size == grown.vocab_size
    for text in lines(3, 30):
        assert again.encode(text) == grown.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    assert again.encode(EOS) == grown.encode(EOS) and grown.id(EOS) not in grown.encode(EOS)


def test_runs_are_of_byte_level_vocabularies() -> None:
    other = Tokenizer.train("spm-bpe", lines(1), 400, Specials(bos="<s>", eos="</s>", unk="<unk>"))
    with pytest.raises(UsageError, match="byte-level BPE"):
        other.grown(0, (), 25)


@pytest.mark.slow
def test_codex_from_nothing_has_its_runs(tmp_path: Path) -> None:
    """A run from scratch trains the vocabulary without runs and gets all 24: it is as large as asked for."""
    path = tmp_path / "code.txt"
    path.write_text("\n\n\n".join(lines(1)), "utf-8")
    plan = resolve("codex", data=f"{path}#split=paragraph", budget="1 steps", overrides={"dims.vocab": 344})
    assert plan.text.runs == 25
    run = stemma.pretrain("codex", data=plan.data, budget="1 steps", out=tmp_path / "run", quiet=True,
                          overrides={"dims.vocab": 344, "dims.context": 64, "train.val_fraction": 0.2})  # fmt: skip
    words = stemma.load(run.directory).tokenizer
    assert words.vocab_size == 344 and len(words.encode(" " * 25)) == 1


def test_rows_of_runs_begin_as_the_mean_of_their_parts(plain: Tokenizer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = dict(n_embd=16, n_layer=1, n_head=2, n_positions=64, vocab_size=plain.vocab_size)
    hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=None, eos_token_id=plain.eos_id)).save_pretrained(tmp_path)
    plain.save(tmp_path)
    from stemma.train import assemble, start
    from stemma.tuning import plans

    there = plans.started(str(tmp_path))
    path = tmp_path / "code.txt"
    path.write_text("\n".join(lines(1)), "utf-8")
    plan = plans.resolve("complete", str(tmp_path), str(path), "1 steps", overrides={"text.runs": 25})
    tokenizer, _ = start.inspect(plan)
    model = assemble.model_of(assemble.fit_to_tokenizer(plan, tokenizer), tokenizer)
    old, new = stemma.load(tmp_path).embed.tokens.weight, model.embed.tokens.weight
    assert there.tokenizer.encode(" " * 5) == [there.tokenizer.id("Ġ")] * 5 and len(new) == len(old) + 24
    assert torch.equal(new[: len(old)], old)
    for n in (2, 9, 25):
        assert torch.allclose(new[tokenizer.encode(" " * n)[0]], old[there.tokenizer.id("Ġ")])


# ---------------------------------------------------------------- filters


def why(text: str, **figures: float) -> str:
    kept, reason = rules.rule(Code(**figures))(text)  # type: ignore[arg-type]
    assert (kept is None) == bool(reason)
    return reason


def test_filters_of_code_one_by_one() -> None:
    """Each rule at its limit."""
    body = "def add(first, second):\n    return first + second\n"
    assert why(body) == "" and why(body, max_bytes=len(body) + 1) == ""
    assert "bytes, not less than" in why(body, max_bytes=len(body))
    assert "'Auto-generated'" in why("# Auto-generated by a tool\n" + body)
    assert "'DO NOT EDIT'" in why("#!/usr/bin/python\n# DO NOT EDIT\n" + body)
    assert why(body * 6 + "# do not edit\n") == ""  # not at the head
    assert why("a tree can be generated by a parser\n") == "" and why("# do not edit\n" + body, generated=False) == ""
    assert why("x" * 100 + "\n" + "y" * 100) == "" and "101 characters on average" in why("x" * 101)
    long = "ab\n" * 20
    assert why(long + "x" * 1000) == "" and "a line of 1,001 characters" in why(long + "x" * 1001)
    assert why("abc" + "+" * 9) == "" and "23% of characters" in why("abc" + "+" * 10)
    assert why("") != ""


def test_counts_by_rule_are_printed(tmp_path: Path) -> None:
    """`stemma data clean --steps exact,code` says how much each rule removed."""
    kept = [text.replace("    ", "\t") for text in lines(2, 60)]
    files = {
        **{f"{i}.py": text for i, text in enumerate(kept)},
        "twice.py": kept[0],
        "made.py": "# This file was automatically generated\n" + kept[1],
        "wide.py": "x = 1\n" * 20 + "y = '" + "z" * 1001 + "'",
        "marks.py": "(),{},\n" * 30,
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, "utf-8")
    found = CliRunner().invoke(root, ["data", "clean", f"{tmp_path}/*.py", "--steps", "exact,code", "--out",
                                      str(tmp_path / "out")])  # fmt: skip
    assert found.exit_code == 0, found.output
    for line in ("exact removed 1 of 10", "code removed 3 of 9", "generated=true removed 1", "max_line=1000 removed 1",
                 "min_alphanumeric=0.25 removed 1", "6 documents"):  # fmt: skip
        assert line in found.output, found.output
    texts = [Document(text, name) for name, text in sorted(files.items())]
    assert len(list(clean(texts, parse("exact,code")))) == 6
