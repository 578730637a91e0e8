"""Every system that the survey names stands in the tree, with what `stemma tree --json` says of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stemma.cli.lookup import node
from stemma.families import family

SYSTEMS = [
    "BERT",
    "RoBERTa",
    "ALBERT",
    "DeBERTa",
    "ELECTRA",
    "XLM",
    "XLNet",
    "UniLM",
    "GPT-1",
    "GPT-2",
    "T5",
    "mT5",
    "MASS",
    "BART",
    "GPT-3",
    "Codex",
    "WebGPT",
    "InstructGPT",
    "ChatGPT",
    "GPT-4",
    "LLaMA",
    "LLaMA-2",
    "LLaMA-2-Chat",
    "Code-LLaMA",
    "Alpaca",
    "Vicuna",
    "QLoRA",
    "Koala",
    "Mistral",
    "Gorilla",
    "Giraffe",
    "Vigogne",
    "Tulu",
    "LongLLaMA",
    "Stable-Beluga-2",
    "PaLM",
    "U-PaLM",
    "Flan-PaLM",
    "PaLM-2",
    "Med-PaLM",
    "FLAN",
    "GLM",
    "Orca",
    "Gemini",
]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_is_in_the_tree(system: str) -> None:
    data: dict[str, Any] = json.loads(json.dumps(node(family(system))))
    assert data["year"] >= 2018 and data["source"] and data["title"]
    assert data["parents"] and data["parents"][0] == data["parent"]
    assert data["published"] == (data["edge"] != "unpublished")
    assert data["has_weights"] == (data["weights"] == "public") or data["weights"]
    assert (data["edge"] == "trained") <= (data["tuning"] is not None)
