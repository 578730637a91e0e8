"""Codex, Code LLaMA and U-PaLM: what is declared of them, rows made of functions, and tuning end to end."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from click.testing import CliRunner

import stemma
from stemma import families, samples
from stemma.cli import root
from stemma.conversations import writer
from stemma.conversations.shapes import Conversation, Turn
from stemma.conversations.shapes import read as conversation
from stemma.conversations.targets import encode, prompt_ids
from stemma.data import Store, read
from stemma.declare.objectives import CLM, Infill
from stemma.declare.tasks import ChatTask
from stemma.declare.tuning import SFT, Pretraining
from stemma.errors import DataError, UsageError
from stemma.nn.parts import Prefix, Rotary
from stemma.objectives import objective
from stemma.objectives.setting import Setting
from stemma.samples import coding, docstrings, functions
from stemma.tasks.base import reader
from stemma.text import Specials, Tokenizer
from stemma.text.growing import without_runs
from stemma.train import start
from stemma.tuning import systems, tune
from test_objective_infill import Texts

EOS = "<|endoftext|>"
SOURCE = '''"""A module."""
import os.path as p
from re import sub, match
from . import here

LIMIT = 3


def alone(first, second=2):
    """Add two numbers."""
    # a comment stays
    return first + second


def cleaned(text):
    """Take blanks off.

    All of them."""

    def inner(x):
        return sub(" ", "", x)

    return inner(text)


@p.wraps
def marked(x):
    """Needs p."""
    return [abs(i) for i in x]


def needs_module(x):
    """Uses a name of the module."""
    return x + LIMIT


def relative(x):
    """Uses a relative import."""
    return here(x)


def bare(x):
    return x


def empty():
    """Has no code."""


def line(): "On one line."; return 1


class Held:
    def method(self):
        """A method."""
        return 1
'''


# ---------------------------------------------------------------- rows


def test_functions_that_stand_by_themselves() -> None:
    """With a docstring and code, and of other names only what is built in or imported, which is put in front."""
    found = {f.name: f for f in functions.of(SOURCE)}
    assert [*found] == ["alone", "cleaned", "marked"]
    row = functions.written(found["alone"])
    assert row == {
        "prompt": 'def alone(first, second=2):\n    """Add two numbers."""\n',
        "completion": "    # a comment stays\n    return first + second\n",
    }
    assert functions.written(found["cleaned"])["prompt"].startswith("from re import sub\n\n\ndef cleaned(text):\n")
    assert functions.written(found["marked"])["prompt"].startswith(
        "import os.path as p\n\n\n@p.wraps\ndef marked(x):\n"
    )
    assert docstrings.described(found["alone"]) == {
        "prompt": "def alone(first, second=2):\n    # a comment stays\n    return first + second\n\n",
        "completion": '"""Add two numbers."""',
    }
    assert coding.asked(found["alone"])["instruction"] == (
        "Write a Python function `alone(first, second=2)`. Add two numbers."
    )
    assert [*functions.of("def f(:\n")] == []


@pytest.mark.slow
def test_rows_of_the_library_are_python_and_apart() -> None:
    """What is held out is of other modules; every answer completes its question to a function."""
    trained, held = list(functions.rows()), list(functions.held_out())
    assert 300 < len(trained) < 5000 and len(held) > 30
    assert not {row["completion"] + row["prompt"] for row in trained} & {r["completion"] + r["prompt"] for r in held}
    for row in trained[::10]:
        assert ast.get_docstring(ast.parse(row["prompt"] + row["completion"]).body[-1])
    for name in ("docstrings", "coding"):
        assert len(list(samples.rows(name))) == len(trained)


def test_blanks_of_a_row_are_learnt_as_they_stand() -> None:
    """The body begins with its indentation, and the answer ends with the end token."""
    known = Tokenizer.train("bpe", without_runs([SOURCE] * 3), 340, Specials(bos=EOS, eos=EOS)).grown(0, (), 25)
    row = functions.written(next(functions.of(SOURCE)))
    example = encode(known, writer(known, "plain").write(conversation(row)), "answers")
    learnt = [i for i, said in zip(example.ids, example.targets, strict=True) if said]
    assert known.decode(learnt) == row["completion"] and learnt[-1] == known.eos_id
    assert known.decode(example.ids) == row["prompt"] + row["completion"]


def test_the_command_makes_rows_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(SOURCE, "utf-8")
    (tmp_path / "b.py").write_text(SOURCE, "utf-8")  # the same functions are one row each
    (tmp_path / "c.py").write_text("x = 1\n", "utf-8")
    out = tmp_path / "rows.jsonl"

    def run(*args: str) -> Any:
        return CliRunner().invoke(root, ["data", "functions", *args, "--out", str(out)])

    done = run(f"{tmp_path}/*.py", "--answer", "docstring")
    assert done.exit_code == 0 and done.output.startswith("3 functions of 3 texts"), done.output
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert next(row["completion"] for row in rows) == '"""Add two numbers."""'
    out.unlink()
    done = run(str(tmp_path / "c.py"))
    assert "no Python function with a docstring" in str(done.exception) and not out.exists()


def test_built_in_text_is_divided_as_files_are() -> None:
    """`#split=section`: the standard library's functions and classes as documents."""
    whole, parts = (list(read(f"builtin:code{split}").documents()) for split in ("", "#split=section"))
    assert len(parts) > 5 * len(whole) and parts[0].name.startswith(whole[0].name)
    assert sum(len(d.text) for d in parts) > 0.95 * sum(len(d.text) for d in whole)
    with pytest.raises(UsageError, match="file, section, paragraph, line"):
        read("builtin:code#split=word")


# ---------------------------------------------------------------- what is declared


def stages(name: str) -> list[Any]:
    return list(systems.stages_of(name))


def test_published_numbers_of_the_stages() -> None:
    (codex,) = stages("codex")
    assert isinstance(codex, Pretraining) and (codex.tokens, dict(codex.changes)) == (1e11, {"clean": "exact,code"})
    design = families.design("codex-12b")
    assert (design.recipe.lr, design.recipe.schedule.warmup, design.text.runs) == (1e-4, 175, 25)
    for name in ("codex-s", "codex-d"):
        (stage,) = stages(name)
        assert isinstance(stage, SFT) and stage.loss_on == "answers"
        assert families.design(f"{name}-12b").recipe.lr == pytest.approx(design.recipe.lr / 10)
    code, long = stages("codellama")
    assert [(part.share, part.epochs) for part in code.mixture] == [(0.85, 2.03), (0.08, 1.39), (0.07, 0.01)]
    assert (code.context, code.batch, code.tokens) == (4096, 4_000_000, (5e11, 5e11, 5e11, 1e12))
    assert (long.context, long.lr, long.steps) == (16_384, 2e-5, (3_000, 10_000, 11_000, None))
    assert (dict(long.changes), long.longer) == ({"arch.position.base": 1e6}, 4.0)
    assert long.batch == (2_000_000, 2_000_000, 1_000_000, None)
    seven = families.design("codellama-7b")
    assert (seven.objective, seven.recipe.schedule.warmup) == (Infill(rate=0.9, swapped=0.5), 1000)
    python, _ = stages("codellama-python")
    assert (python.tokens, python.mixture[0].share, python.mixture[0].epochs) == (1e11, 0.75, 3.69)
    for size, vocab in (("7b", 32_000), ("70b", 32_016)):
        found = families.design(f"codellama-{size}-python")
        assert (found.objective, found.recipe.lr, found.dims.vocab) == (CLM(), 1e-4, vocab)
    (instruct,) = stages("codellama-instruct")
    assert (instruct.batch, instruct.tokens) == (524_288, 5e9)
    assert families.design("codellama-70b-instruct").arch.position == Rotary(1e4)


def test_full_plans_have_the_published_numbers(llama: Path) -> None:
    """`--full`, by size; scaled, text is read once, and rows of the long stage are four times as long."""

    def plan(name: str, stage: int, full: bool = True) -> Any:
        return systems.resolve(name, str(llama), stage=stage, full=full)

    code, long = plan("codellama", 1), plan("codellama", 2)
    assert (code.train.budget, code.recipe.batch, code.recipe.lr) == ("5e+11 tokens", 4_000_000, 3e-4)
    assert (code.recipe.schedule.warmup, code.recipe.steps) == (1000, 125_000)
    assert code.arch.position.base == 1e4 and long.arch.position.base == 1e6
    assert (long.train.budget, long.recipe.batch, long.context) == ("3000 steps", 2_000_000, 16_384)
    big = plan("codellama-34b", 2)
    assert (big.train.budget, big.recipe.batch, big.objective) == ("11000 steps", 1_000_000, CLM())
    assert plan("codellama", 2, False).context == 4 * 64 and plan("codellama", 1, False).train.budget == "1 epochs"
    palm = plan("u-palm-540b", 1)
    assert (palm.train.budget, palm.recipe.lr, palm.arch.mask) == ("20000 steps", 1e-4, Prefix())
    assert plan("u-palm", 1).train.budget == "50000 steps"


def test_instruct_reads_code_and_text_again(llama: Path, tmp_path: Path) -> None:
    """92 % requests, 6 % code, 2 % other text, which are learnt whole; 70B writes in a template of its own."""
    plan = systems.resolve("codellama-instruct", str(llama))
    assert plan.data == "builtin:coding@0.92,builtin:code@0.06#split=section,builtin:docs@0.02"
    assert plan.objective.task == ChatTask("llama-2-chat", texts=True)  # type: ignore[attr-defined]
    big = systems.resolve("codellama-70b-instruct", str(llama))
    assert big.objective.task == ChatTask("codellama-70b", texts=True)  # type: ignore[attr-defined]
    own = [{"prompt": f"add {i}", "completion": f"x + {i}"} for i in range(40)]
    again = [{"text": f"def f{i}(x):\n    return x + {i}\n", "licence": "mit"} for i in range(40)]
    for name, rows in (("own", own), ("again", again)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    data = f"{tmp_path}/own.jsonl@0.9,{tmp_path}/again.jsonl@0.1"
    run = tune("codellama-instruct", start=str(llama), data=data, out=tmp_path / "run", budget="3 steps",
               overrides={"recipe.batch": 512}, **QUIET)  # fmt: skip
    assert run.finished and len(Store.open(tmp_path / "run" / "data")) == 80
    held = run.plan.objective.task  # type: ignore[attr-defined]
    read = reader(held, run.tokenizer, 64, "decoder")
    known = run.tokenizer
    ids, marks = read.marked(read.read(again[0]))
    body = known.encode(again[0]["text"], add_special=False)
    assert ids == [known.bos_id, *body, known.eos_id] and marks == [0, 1]
    ids, marks = read.marked(read.read({"text": "x = 1 " * 200}))
    assert len(ids) == 65 and known.eos_id not in ids, "a text that is cut has no end"
    ids, marks = read.marked(read.read(own[0]))
    assert "[INST]" in known.decode(ids) and len(marks) == 2 and marks[1] > 4
    for wrong, why in (({"text": ""}, "its text .* is empty"), ({"text": "a", "role": "user"}, "no conversation")):
        with pytest.raises(DataError, match=why):
            read.check(wrong)
    with pytest.raises(DataError, match="no conversation"):
        reader(ChatTask("llama-2-chat"), known, 64, "decoder").check(again[0])
    with pytest.raises(DataError, match="which decoders learn"):
        reader(held, known, 64, "encoder-decoder").check(again[0])


def test_the_template_of_70b_gives_its_publishers_ids() -> None:
    """As the released code does: heads and words are encoded apart, each with the space that SentencePiece puts there;
    `<step>` ends a message; an empty system message comes first."""
    known = Tokenizer.train("spm-bpe", [SOURCE, "Source: user assistant system Destination: user"] * 3, 420,
                            Specials(bos="<s>", eos="</s>", unk="<unk>")).grown(0, ["<step>"])  # fmt: skip

    def message(role: str, words: str) -> list[int]:
        head = f" Source: {role}" + ("\nDestination: user" if role == "assistant" else "")
        ids = known.encode(head, add_special=False) + known.encode(f"\n\n {words}", add_special=False)
        return [*ids, known.id("<step>")]  # type: ignore[list-item]

    write = writer(known, "codellama-70b")
    turns = (Turn("user", "add two "), Turn("assistant", " return x\n    y"))
    found = encode(known, write.write(Conversation(turns)), "answers")
    expected = [known.bos_id, *message("system", ""), *message("user", "add two"),
                *message("assistant", "return x\n    y")]  # fmt: skip
    assert list(found.ids) == expected
    prompt = prompt_ids(known, write.prompt(turns[:1]))
    assert prompt == expected[: len(prompt)] and len(prompt) < len(expected)


# ---------------------------------------------------------------- end to end


def words() -> list[str]:
    return [d.text for d, _ in zip(read("builtin:code#split=section").documents(), range(60), strict=False)]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "code.jsonl"
    short = [t for t in words() if len(t) < 400]
    rows = [*short, f"x = '{EOS} ▁<PRE> [NLU] <extra_id_0>'\n" * 3]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), "utf-8")
    return str(path)


def base(folder: Path, tokenizer: Tokenizer, model: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    known = Tokenizer.train("spm-bpe", words(), 500, Specials(bos="<s>", eos="</s>", unk="<unk>"))
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    config = hf.LlamaConfig(**sizes, vocab_size=known.vocab_size, max_position_embeddings=64, bos_token_id=1, eos_token_id=2)  # fmt: skip
    return base(tmp_path_factory.mktemp("llama"), known, hf.LlamaForCausalLM(config))


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    known = Tokenizer.train("bpe", without_runs(words()), 500, Specials(bos=EOS, eos=EOS))
    sizes = dict(n_embd=32, n_layer=2, n_head=4, n_positions=256, vocab_size=known.vocab_size)
    config = hf.GPT2Config(**sizes, bos_token_id=known.eos_id, eos_token_id=known.eos_id)
    return base(tmp_path_factory.mktemp("gpt"), known, hf.GPT2LMHeadModel(config))


QUIET: dict[str, Any] = {"quiet": True}
SMALL: dict[str, Any] = {"recipe.batch": 512, "train.eval_tokens": 600, "train.val_fraction": 0.1}


def test_codex_learns_rows_for_its_runs(
    gpt: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """24 rows that begin as a space's and learn; its filters say what they removed; then it writes functions and
    describes them, and the loss is on the answers."""
    more: dict[str, Any] = {"budget": "4 steps", "overrides": SMALL}
    run = tune("codex", start=str(gpt), data=text, out=tmp_path / "codex", **more)
    said = capsys.readouterr().err
    assert run.finished and run.plan.system == "codex" and "24 runs of spaces" in said and "code removed" in said
    there, before = stemma.load(tmp_path / "codex"), stemma.load(gpt)
    size = before.dims.vocab
    assert there.dims.vocab == size + 24 and there.tokenizer.encode(" " * 9) == [size + 7]
    space = before.embed.tokens.weight[before.tokenizer.id("Ġ")]
    moved = (there.embed.tokens.weight[size:] - space).abs().amax(1)
    assert moved.min() > 0 and moved.max() < 0.2
    for name, sample in (("codex-s", functions.rows()), ("codex-d", docstrings.rows())):
        rows = tmp_path / f"{name}.jsonl"
        small = [row for row in sample if len(row["prompt"] + row["completion"]) < 300][:20]
        rows.write_text("".join(json.dumps(row) + "\n" for row in small), "utf-8")
        run = tune(name, start=str(tmp_path / "codex"), data=str(rows), out=tmp_path / name, **more, **QUIET)
        assert run.finished and stemma.load(tmp_path / name).dims.vocab == size + 24
    run = tune("codex", start=str(gpt), data=text, out=tmp_path / "beside", lora=4, **more, **QUIET)
    moved = (run.model.embed.tokens.own - space).abs().amax(1)
    assert len(moved) == 24 and moved.min() > 0 and moved.max() < 0.2, "an adapter's rows begin there too"
    ids = torch.tensor([[5, size + 7, 9]])
    again = stemma.load(gpt, adapter=tmp_path / "beside")
    assert torch.equal(again(ids).logits, run.model.eval()(ids).logits)


def test_codex_reads_the_python_files_of_a_folder(gpt: Path, tmp_path: Path) -> None:
    home = tmp_path / "code"
    (home / "in").mkdir(parents=True)
    for i in range(6):
        (home / "in" / f"m{i}.py").write_text(SOURCE + f"\n\ndef f{i}(x):\n    return x\n" * 20, "utf-8")
        (home / f"notes{i}.txt").write_text("plain words " * 400, "utf-8")
    plan = systems.resolve("codex", str(gpt), f"{home}@0.7,{home}/in#files=m1.py,{home}/notes1.txt")
    assert plan.data == f"{home}@0.7#files=*.py,{home}/in#files=m1.py,{home}/notes1.txt"
    run = tune("codex", start=str(gpt), data=str(home), out=tmp_path / "run", budget="1 steps", overrides=SMALL, **QUIET)  # fmt: skip
    store = Store.open(tmp_path / "run" / "data")
    words = [run.tokenizer.decode(store[i]) for i in range(len(store))]
    assert words and not any("plain words" in text for text in words)


def test_codellama_fills_and_reads_longer_rows(llama: Path, text: str, tmp_path: Path) -> None:
    """Both stages from one command: tokens for infilling, then another base and rows four times as long. The name of a
    mark in a text is never the mark; a middle ends with EOT, a text as it is with the end token."""
    run = tune("codellama", start=str(llama), data=text, out=tmp_path / "run", budget="3 steps",
               overrides=SMALL, **QUIET)  # fmt: skip
    assert run.finished
    first, last = stemma.load(tmp_path / "run" / "stages" / "1"), stemma.load(tmp_path / "run")
    assert (first.arch.position.base, first.dims.context) == (1e4, 64)
    assert (last.arch.position.base, last.dims.context, run.plan.context) == (1e6, 256, 256)
    known = last.tokenizer
    marks = [known.id(name) for name in ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")]
    assert marks == [*range(known.vocab_size - 4, known.vocab_size)]
    assert not {*known.encode("x = '▁<PRE> <EOT>' ▁<EOT>")} & {*marks}
    assert not torch.equal(first.embed.tokens.weight[marks[0]], last.embed.tokens.weight[marks[0]])
    filled = stemma.fill(last, "def f(x):[MASK]return x", max_new_tokens=3)
    assert len(filled.spans) == 1 and filled.text.startswith("def f(x):") and filled.text.endswith("return x")


def test_a_middle_ends_with_eot_and_a_text_with_eos(llama: Path, text: str) -> None:
    """In the rows of the code stage: nine of ten documents are rearranged, and end with EOT alone."""
    plan = systems.resolve("codellama", str(llama), text, stage=1)
    known, _ = start.inspect(plan)
    goal = objective(plan.objective, Setting(known, plan.text, 64, 1))
    pre, eot = (known.id(name) for name in ("▁<PRE>", "▁<EOT>"))
    moved = plain = 0
    for example, _ in goal.examples(Texts(["a = 1", "def f(): pass", "x", "return y"] * 25, known), once=True):
        for number in range(int(example["documents"].max()) + 1):
            ids = example["input_ids"][example["documents"] == number].tolist()
            if pre in ids:
                moved += 1
                assert ids[:1] == [known.bos_id] and ids.index(eot) == len(ids) - 1 and known.eos_id not in ids
            else:
                plain += known.bos_id in ids
                assert eot not in ids and known.eos_id not in ids[:-1]
    assert moved + plain == 100 and 80 <= moved <= 97


def test_u_palm_reads_its_prompt_whole_and_fills(tmp_path: Path) -> None:
    """UL2R from a PaLM: modes and sentinels are tokens whose rows learn, a prompt sees itself whole and targets do not
    see those behind them, and spans are filled."""
    sizes = {"dims.d_model": 32, "dims.layers": 2, "dims.heads": 4, "dims.d_ff": 48, "dims.vocab": 500,
             "dims.context": 64, "train.context": 64}  # fmt: skip
    stemma.pretrain("palm", data="builtin:captain", out=tmp_path / "palm", budget="2 steps", overrides=sizes | SMALL, **QUIET)  # fmt: skip
    more: dict[str, Any] = {"start": str(tmp_path / "palm"), "data": "builtin:captain", "overrides": SMALL, **QUIET}
    run = tune("u-palm", out=tmp_path / "run", budget="12 steps", **more)
    assert run.finished and {kind.mode for kind in run.plan.objective.kinds} == {"[NLU]", "[NLG]", "[S2S]"}  # type: ignore[attr-defined]
    there, before = stemma.load(tmp_path / "run"), stemma.load(tmp_path / "palm")
    known = there.tokenizer
    assert there.arch.mask == Prefix() and known.sentinels == 100 and there.dims.vocab == before.dims.vocab + 103
    fresh = tune(
        "u-palm", out=tmp_path / "fresh", budget="1 steps", **more | {"overrides": SMALL | {"recipe.lr": 1e-9}}
    )
    assert fresh.finished
    new = stemma.load(tmp_path / "fresh").embed.tokens.weight
    for name in ("[NLU]", "[NLG]", "[S2S]", "<extra_id_0>"):
        assert not torch.allclose(new[known.id(name)], there.embed.tokens.weight[known.id(name)], atol=1e-4), name
    ids = torch.tensor([known.encode("one two three four five six", add_special=False)[:8]])
    other = ids.clone()
    other[0, 4], other[0, 6] = (ids[0, 4] + 1) % 500, (ids[0, 6] + 1) % 500
    a, b = (there(row, prefix=torch.tensor([5])).logits[0] for row in (ids, other))
    assert not torch.allclose(a[0], b[0], atol=1e-6)  # a place of the prefix sees one behind it
    only = ids.clone()
    only[0, 6] = other[0, 6]
    c = there(only, prefix=torch.tensor([5])).logits[0]
    assert torch.allclose(a[:6], c[:6], atol=1e-6) and not torch.allclose(a[6], c[6], atol=1e-6)
    filled = stemma.fill(there, "the sea [MASK] the ship", max_new_tokens=4)
    assert len(filled.spans) == 1 and filled.text.startswith("the sea") and filled.text.endswith("the ship")
