"""The sides of `bench/align.py` for DPO: pairs of answers, Stemma's loop over them, and trl's DPOTrainer with peft."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from stemma.train import Plan
from stemma.train.assemble import fit_to_tokenizer, loop_over, with_steps
from stemma.train.source import TextSource, objective_of
from training.sft import RANK
from training.trainer import _Steps

VOCAB = 49_152
EOS, PAD, UNKNOWN = 1, 2, 3  # ids that no pair holds but as these
LONGEST = 1024  # tokens of a text at most


class Pair(NamedTuple):
    """Ids of a prompt and of two answers to it, each with its end token."""

    prompt: np.ndarray[Any, Any]
    chosen: np.ndarray[Any, Any]
    rejected: np.ndarray[Any, Any]

    @property
    def tokens(self) -> int:
        """Tokens of both texts."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


class Pairs:
    """Pairs as a view of a store, ids at random. Lengths are lognormal with the mean and deviation of those of
    Anthropic's HH: prompts of about 155 tokens, answers of about 47, texts of at most `longest`."""

    groups = np.zeros(0, dtype=np.int64)

    def __init__(self, number: int, seed: int = 1, longest: int = LONGEST) -> None:
        draw, answers = np.random.default_rng(seed), min(300, longest // 2)

        def ids(mean: float, deviation: float, most: int) -> Any:
            return draw.integers(10, VOCAB, int(np.clip(draw.lognormal(mean, deviation), 4, most)))

        def answer() -> Any:
            return np.append(ids(3.51, 0.85, answers), EOS)

        self.held = [Pair(ids(4.79, 0.74, longest - answers - 1), answer(), answer()) for _ in range(number)]
        self.tokens_total = sum(pair.tokens for pair in self.held)

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, i: int) -> Any:
        prompt, chosen, rejected = self.held[i]
        return np.concatenate([prompt, chosen, prompt, rejected])

    def sentences(self, i: int) -> Any:
        """Marks: where each answer begins, and where the second text does."""
        prompt, chosen, _ = self.held[i]
        first = len(prompt) + len(chosen)
        return np.asarray([0, len(prompt), first, first + len(prompt)])

    def text(self, _: int) -> str:
        return json.dumps({"prompt": "a question", "chosen": "an answer", "rejected": "another"})


# ---------------------------------------------------------------- ours


def plan_of(folder: Path, lora: bool, precision: str) -> tuple[Plan, Any]:
    """The plan that `stemma align dpo` makes for such a model, and the tokenizer."""
    from stemma import formats
    from stemma.alignment.plans import resolve

    plan = resolve("dpo", str(folder), "builtin:captain", template="vicuna", lora=RANK if lora else None)
    plan = replace(plan, train=replace(plan.train, precision=precision))  # type: ignore[arg-type]
    return with_steps(plan, 10_000, False), formats.load(folder, device="meta").tokenizer


def ours(folder: Path, view: Pairs, lora: bool, precision: str) -> Callable[[], int]:
    """A function that takes a step of Stemma's loop and returns the tokens of its pairs."""
    plan, tokenizer = plan_of(folder, lora, precision)
    goal = objective_of(fit_to_tokenizer(plan, tokenizer), tokenizer)
    loop = loop_over(plan, tokenizer, goal, TextSource(plan, goal, view))  # type: ignore[arg-type]
    order = goal.order(view)  # type: ignore[arg-type]

    def step() -> int:
        begin = loop.cursor.slot
        loop.advance()
        return sum(view.held[order[slot][0]].tokens for slot in range(begin, loop.cursor.slot))

    return step


def our_loss(folder: Path, other: Path, view: Pairs, number: int) -> float:
    """Stemma's loss of the first pairs, with the weights in `other` as the reference."""
    import stemma

    plan, tokenizer = plan_of(folder, False, "fp32")
    goal: Any = objective_of(fit_to_tokenizer(plan, tokenizer), tokenizer)
    batch = goal.collate([goal.example(view, i) for i in range(number)])
    with torch.no_grad():
        nets = {"reference": stemma.load(other).requires_grad_(False)}
        return float(goal.loss(stemma.load(folder), batch, nets).total())


# ---------------------------------------------------------------- theirs


def theirs(folder: Path, other: Path | None, view: Pairs, lora: bool, precision: str, best: bool, out: str) -> Any:
    """trl's trainer: with its defaults, or `best`: nothing computed twice, and as many pairs a step as Stemma. `other`:
    the reference, where it is not the model itself."""
    import datasets
    import transformers as hf
    from peft import LoraConfig
    from tokenizers import Tokenizer, models, pre_tokenizers
    from trl import DPOConfig, DPOTrainer

    hf.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    names = {EOS: "</s>", PAD: "<pad>", UNKNOWN: "<unk>"}
    words = {names.get(i, f"w{i}"): i for i in range(VOCAB)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    )

    def text(ids: Any) -> str:
        return "".join(f" w{i}" for i in ids if i != EOS)

    rows = [{"prompt": text(p.prompt), "chosen": text(p.chosen), "rejected": text(p.rejected)} for p in view.held]
    more = dict(activation_checkpointing=False, per_device_train_batch_size=16) if best else {}
    settings = DPOConfig(
        out, max_steps=10**6, report_to=[], save_strategy="no", logging_strategy="no", bf16=precision == "bf16",
        use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, seed=1, **more,
    )  # fmt: skip
    adapter = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")

    def load(path: Path) -> Any:
        return hf.LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)

    steps = _Steps()
    trainer = DPOTrainer(
        load(folder), None if lora else load(other or folder), settings,
        train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer,
        peft_config=adapter if lora else None, callbacks=[steps.callback()],
    )  # fmt: skip
    trainer.remove_callback(hf.PrinterCallback)
    return trainer, steps


def stepper(trainer: Any, steps: _Steps) -> Callable[[], int]:
    """A function that takes a step of a trainer and returns the tokens of its pairs."""
    return steps.counting(trainer, lambda inputs: int(inputs["attention_mask"].sum()))


def their_loss(folder: Path, other: Path, view: Pairs, number: int, out: str) -> float:
    """trl's loss of the first pairs."""
    trainer, _ = theirs(folder, other, view, False, "fp32", True, out)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(number)])
    assert int(batch["attention_mask"].sum()) == sum(pair.tokens for pair in view.held[:number])
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, batch))
