"""EleutherAI's harness: the same scores for a model here and in transformers, by the same weights and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval", reason="the package lm-eval is not installed")

from oracle import saved  # noqa: E402
from stemma.errors import UsageError  # noqa: E402
from stemma.text import Specials, Tokenizer  # noqa: E402

TEXTS = ["a leaf on a branch of a tree, and a tree in a wood.\n" * 20]
ROWS = [
    {"q": f"a leaf on a {what}", "right": right}
    for what, right in (("tree", " of"), ("branch", " wood"), ("wood", "."))
]
CHOICE = """task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{[right, ' a tree', ' leaf on', 'x']}}}}"
doc_to_target: 0
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
TEXT = """task: local_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{q}}}}, and {{{{q}}}}, and {{{{q}}}} {{{{right}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""
WRITE = """task: local_write
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{right}}}}"
generation_kwargs: {{until: [","], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in (("choice", CHOICE), ("text", TEXT), ("write", WRITE)):
        (folder / f"{name}.yaml").write_text(text.format(file=folder / "rows.jsonl"))
    return folder


def scores(tasks: Path, model: str, args: str, *names: str) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model=model, model_args=args, tasks=[*names], batch_size=2, device="cpu",
        task_manager=TaskManager(include_path=str(tasks)), bootstrap_iters=0, log_samples=True,
    )  # fmt: skip
    said = {name: [row["filtered_resps"] for row in rows] for name, rows in found["samples"].items()}
    return {"results": found["results"], "said": said}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama", "gpt2", "t5"])
def test_scores_equal_those_of_transformers(case: str, tasks: Path, tmp_path: Path) -> None:
    import stemma.evaluate.harness  # noqa: F401  # registers `stemma`

    saved(case, tmp_path)
    Tokenizer.train("gpt-bpe", TEXTS, 60, Specials(bos="<s>", eos="</s>", unk="<unk>", pad="<pad>")).save(tmp_path)
    names = ["local_choice", "local_text", "local_write"][: 2 if case == "t5" else 3]  # its generate fails on tiny T5s
    ours = scores(tasks, "stemma", f"path={tmp_path}", *names)
    theirs = scores(tasks, "hf", f"pretrained={tmp_path},dtype=float32", *names)
    for name, values in theirs["results"].items():
        for metric, value in values.items():
            if isinstance(value, float):
                assert ours["results"][name][metric] == pytest.approx(value, rel=1e-5), (name, metric)
    assert ours["said"].get("local_write") == theirs["said"].get("local_write")


@pytest.mark.slow
def test_refusals(tmp_path: Path) -> None:
    from stemma.evaluate.harness import StemmaLM

    saved("bert-mlm", tmp_path)
    with pytest.raises(UsageError, match="names no model: give path=MODEL"):
        StemmaLM()
    with pytest.raises(UsageError, match="no tokenizer"):
        StemmaLM(str(tmp_path))
    Tokenizer.train("gpt-bpe", TEXTS, 60, Specials(bos="<s>", eos="</s>", unk="<unk>", pad="<pad>")).save(tmp_path)
    with pytest.raises(UsageError, match="from left to right"):
        StemmaLM(str(tmp_path))
    with pytest.raises(UsageError, match="--batch_size 'auto'"):
        StemmaLM(str(tmp_path), batch_size="auto")
