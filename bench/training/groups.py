"""The sides of `bench/align.py` for GRPO: prompts, a step of Stemma's loop that samples, and trl's GRPOTrainer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stemma.train.assemble import fit_to_tokenizer, loop_over, with_steps
from stemma.train.source import objective_of
from training.pairs import EOS, PAD, UNKNOWN, VOCAB
from training.trainer import _Steps

GROUP = 8  # answers to a prompt, by default on both sides
REWARD = """
def spread(prompt, answer, record):
    return sum(map(ord, answer)) % 7
"""


class Prompts:
    """Prompts as a view of a store, ids at random; lengths as in `pairs`."""

    groups = np.zeros(0, dtype=np.int64)

    def __init__(self, number: int, seed: int = 1) -> None:
        draw = np.random.default_rng(seed)
        sizes = np.clip(draw.lognormal(4.79, 0.74, number), 4, 700).astype(int)
        self.held = [draw.integers(10, VOCAB, size) for size in sizes]
        self.lengths, self.tokens_total = sizes, int(sizes.sum())

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, i: int) -> Any:
        return self.held[i]

    def text(self, i: int) -> str:
        """The row, of which the ids are not made here."""
        return json.dumps({"prompt": f"question {i}"})


def ours(folder: Path, view: Prompts, precision: str, prompts: int, tokens: int) -> Callable[[], int]:
    """A function that takes a step of Stemma's loop and returns the tokens of its answers."""
    from stemma import formats
    from stemma.alignment.plans import resolve

    file = folder / "reward.py"
    file.write_text(REWARD)
    changes = {"objective.max_new_tokens": tokens, "objective.prompts": prompts, "objective.gates.finished": None}
    plan = resolve(
        "grpo", str(folder), "builtin:captain", template="vicuna", rewards=[f"{file}:spread"],
        overrides=changes | {"objective.kl": 0.0, "objective.reduction": "tokens"},
    )  # fmt: skip
    plan = with_steps(replace(plan, train=replace(plan.train, precision=precision)), 10_000, False)  # type: ignore[arg-type]
    tokenizer = formats.load(folder, device="meta").tokenizer
    goal = objective_of(fit_to_tokenizer(plan, tokenizer), tokenizer)
    loop = loop_over(plan, tokenizer, goal, goal.source(plan, view, None))

    def step() -> int:
        return round(loop.advance()["length"] * prompts * GROUP)

    return step


def theirs(
    folder: Path, view: Prompts, precision: str, prompts: int, tokens: int, best: bool, out: str
) -> Callable[[], int]:
    """The same of trl's trainer: with its defaults but for the length of answers, one prompt a step; or `best`: nothing
    computed twice, and as many prompts a step as Stemma."""
    import datasets
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers
    from trl import GRPOConfig, GRPOTrainer

    hf.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    names = {EOS: "</s>", PAD: "<pad>", UNKNOWN: "<unk>"}
    made = Tokenizer(models.WordLevel({names.get(i, f"w{i}"): i for i in range(VOCAB)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    )
    seen: list[int] = []

    def spread(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        seen.extend(map(len, completion_ids))
        return [float(sum(map(ord, text)) % 7) for text in completions]

    more: dict[str, Any] = (
        {"gradient_checkpointing": False, "per_device_train_batch_size": prompts * GROUP} if best else {}
    )
    settings = GRPOConfig(
        out, max_completion_length=tokens, max_steps=10**6, report_to=[], save_strategy="no", logging_strategy="no",
        bf16=precision == "bf16", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, seed=1, **more,
    )  # fmt: skip
    model = hf.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    steps = _Steps()
    trainer = GRPOTrainer(
        model, spread, settings, processing_class=tokenizer, callbacks=[steps.callback()],
        train_dataset=datasets.Dataset.from_list([{"prompt": "".join(f" w{i}" for i in ids)} for ids in view.held]),
    )  # fmt: skip
    trainer.remove_callback(hf.PrinterCallback)
    return steps.adding(trainer, seen)
