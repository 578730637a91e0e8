"""A tree as large as the real one may become: children of the declared families, added for a test and no longer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stemma import families
from stemma.declare.family import About, Family, Size
from stemma.nn.parts import Causal, Cycle, Dims, GatedMLP, LinearScaling, RMSNorm, Rotary, Sliding

# parent -> children: (name, year, trained)
GROWTH: dict[str, list[tuple[str, int, bool]]] = {
    "bert": [(n, y, n == "s-distilbert") for n, y in (
        ("s-albert", 2019), ("s-xlm", 2019), ("s-unilm", 2019), ("s-distilbert", 2019), ("s-electra", 2020), ("s-deberta", 2020),
    )],
    "s-deberta": [("s-deberta-v2", 2021, False), ("s-deberta-v3", 2021, False)],
    "roberta": [("s-xlm-roberta", 2019, False), ("s-xlm-roberta-xl", 2021, False), ("s-codebert", 2020, True)],
    "gpt2": [("s-xlnet", 2019, False), ("s-gpt-neo", 2021, False), ("s-glm", 2021, False)],
    "s-glm": [("s-glm-130b", 2022, False), ("s-chatglm-6b", 2023, True), ("s-chatglm2", 2023, False)],
    "gpt3": [("s-codex", 2021, True), ("s-webgpt", 2021, True), ("s-instructgpt", 2022, True), ("s-palm", 2022, False),
             ("s-gpt4", 2023, False), ("s-opt", 2022, False), ("s-bloom", 2022, False)],
    "s-instructgpt": [("s-chatgpt", 2022, True)],
    "s-palm": [("s-u-palm", 2022, True), ("s-flan-palm", 2022, True), ("s-palm2", 2023, False), ("s-gemini", 2023, False)],
    "s-flan-palm": [("s-med-palm", 2022, True)],
    "s-gemini": [("s-gemma", 2024, False)],
    "s-gemma": [("s-gemma2", 2024, False)],
    "s-gemma2": [("s-gemma3", 2025, False)],
    "llama": [(n, 2023, t) for n, t in (
        ("s-alpaca", True), ("s-vicuna-13b-v1.5-16k", True), ("s-koala", True), ("s-guanaco", True), ("s-gorilla", True),
        ("s-giraffe", False), ("s-vigogne", True), ("s-tulu", True), ("s-longllama", False), ("s-orca", True), ("s-llama2", False),
    )],
    "s-llama2": [("s-llama2-chat", 2023, True), ("s-code-llama", 2023, False), ("s-stable-beluga", 2023, True),
                 ("s-llama3", 2024, False), ("s-qwen", 2023, False), ("s-tulu2", 2023, True)],
    "s-code-llama": [("s-code-llama-python", 2023, True), ("s-code-llama-instruct", 2023, True)],
    "s-code-llama-python": [("s-wizardcoder", 2023, True)],
    "s-llama3": [("s-llama3.1", 2024, False), ("s-llama3-instruct", 2024, True), ("s-deepseek", 2024, False)],
    "s-llama3.1": [("s-llama3.2", 2024, False), ("s-llama3.3", 2024, True)],
    "s-qwen": [("s-qwen1.5", 2024, False)],
    "s-qwen1.5": [("s-qwen2", 2024, False)],
    "s-qwen2": [("s-qwen2.5", 2024, False)],
    "s-qwen2.5": [("s-qwen3", 2025, False)],
    "mistral": [("s-mixtral", 2023, False), ("s-zephyr", 2023, True), ("s-mistral-nemo", 2024, False)],
    "t5": [("s-mt5", 2020, False), ("s-flan-t5", 2022, True), ("s-ul2", 2022, False), ("s-byt5", 2021, False), ("s-switch", 2021, False)],
    "s-ul2": [("s-flan-ul2", 2023, True)],
    "transformer": [("s-mass", 2019, False), ("s-bart", 2019, False)],
    "s-bart": [("s-mbart", 2020, False)],
}  # fmt: skip

CHANGES: list[dict[str, Any]] = [
    {"recipe.lr": 2.5e-5, "recipe.data": "52k instructions", "recipe.steps": 1234},
    {"arch.mlp": GatedMLP("relu"), "recipe.batch": 3_000_000, "recipe.lr": 1.5e-5, "arch.norm": RMSNorm(1e-3)},
    {
        "arch.position": Rotary(500_000.0, LinearScaling(4.0)),
        "recipe.data": "15T tokens",
        "arch.attention.scaled": None,
    },
    {"arch.mask": Cycle((Causal(), Sliding(1024))), "arch.attention.bias": None, "text.pad": "<padding>"},
    {"arch.embed_norm": None, "recipe.steps": 777, "text.tokenizer": "unigram"},
]


def child(parent: Family, name: str, year: int, trained: bool, n: int) -> Family:
    wanted = dict(CHANGES[0] if trained else CHANGES[n % len(CHANGES)])
    for path, value in list(wanted.items()):
        here: Any = parent
        for step in path.split("."):
            here = getattr(here, step)
        if value is None:  # a switch: turn it
            wanted[path] = not here
        elif here == value or (path == "arch.mask" and parent.arch.structure == "encoder"):
            del wanted[path]
    if "arch.position" in wanted and getattr(parent.arch.init, "positions", None) is not None:
        wanted["arch.init.positions"] = None
    wanted["recipe.clip"] = 0.5 + n
    first = next(iter(parent.sizes.values())).dims
    sizes = {f"{name}-{k}b": Size(Dims(1024, 24 + k, 16, 4096, first.vocab, 2048), published=f"{k}B") for k in (1, 7)}
    about = About(year, f"{name}: a family <made> & for a test", f"arXiv:2301.{n:05d}", weights="none: it is invented")
    return (parent.trained if trained else parent.evolve)(name, wanted, sizes=sizes, about=about)


@contextmanager
def grown() -> Iterator[dict[str, Family]]:
    """`families.tree()` with more than eighty families, for the time of a `with`."""
    before = dict(families._added)
    n = 0
    try:
        waiting = dict(GROWTH)
        while waiting:
            parent = next(p for p in waiting if p in families.tree())
            for name, year, trained in waiting.pop(parent):
                n += 1
                families._added[name] = child(families.tree()[parent], name, year, trained, n)
        yield families.tree()
    finally:
        families._added.clear()
        families._added.update(before)
