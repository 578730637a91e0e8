"""The sides of `bench/tune.py`: examples of prompts and answers, Stemma's loop over them, and trl's trainer with peft."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stemma.declare.tasks import Answers
from stemma.nn.model import IGNORED
from stemma.objectives import Objective
from stemma.train import Plan
from stemma.train.assemble import fit_to_tokenizer, loop_over, with_steps
from stemma.train.source import TextSource, objective_of
from stemma.tuning import sizes
from stemma.tuning.plans import resolve
from training.trainer import _Steps

RANK = 8  # of adapters beside all linear layers, alpha 16, on both sides
PAD = 2  # an id that no example holds
LAYERS = 30  # of SmolLM2-135M


@dataclass(frozen=True)
class Single:
    """An example: its `ids`, and where the answer begins."""

    ids: np.ndarray[Any, Any]
    answer: int


class Examples:
    """Examples as a view of a store: lengths as in instruction data (prompts of about 45 tokens, answers of about 80,
    the longest some hundreds), ids at random."""

    groups = np.zeros(0, dtype=np.int64)

    def __init__(self, number: int, vocab: int, seed: int = 1) -> None:
        draw = np.random.default_rng(seed)
        prompts = np.clip(draw.lognormal(3.7, 0.5, number).astype(int), 8, 300)
        answers = np.clip(draw.lognormal(4.0, 0.9, number).astype(int), 4, 700)
        self.held = [Single(draw.integers(10, vocab, p + a), p) for p, a in zip(prompts, answers, strict=True)]
        self.tokens_total = int(sum(len(one.ids) for one in self.held))

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, i: int) -> Any:
        return self.held[i].ids

    def sentences(self, i: int) -> Any:
        """Marks: the answer is the target."""
        return np.asarray([0, self.held[i].answer])

    @property
    def measured(self) -> sizes.Measured:
        """As `stemma tune` measures rows."""
        longest = max(len(one.ids) for one in self.held)
        return sizes.Measured(len(self), self.tokens_total / len(self), longest, True)


def base(folder: Path, layers: int, seed: int = 1) -> Path:
    """A network of SmolLM2-135M's shape with random weights, as transformers saves it, with a small tokenizer."""
    import transformers as hf

    from stemma.text import Specials, Tokenizer

    torch.manual_seed(seed)
    config = hf.LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49_152, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
        pad_token_id=PAD,
    )  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer.train("bpe", ["a text"], 300, Specials(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>"))
    tokenizer.save(folder)
    return folder


# ---------------------------------------------------------------- ours


def plan_of(folder: Path, view: Examples, lora: bool, precision: str, **more: Any) -> tuple[Plan, Any]:
    """The plan that `stemma tune` makes for such a model and such rows, and the tokenizer."""
    from stemma import formats

    settings = {"template": "vicuna"}  # without new tokens, which no adapter could learn
    plan = resolve("chat", str(folder), "builtin:captain", settings=settings, lora=RANK if lora else None)
    fits = sizes.fitting(view.measured, 1024, False)
    train = replace(plan.train, context=fits["train.context"], precision=precision, **more)  # type: ignore[arg-type]
    plan = replace(plan, train=train, recipe=replace(plan.recipe, batch=fits["recipe.batch"]))
    tokenizer = formats.load(folder, device="meta").tokenizer
    return with_steps(plan, 10_000, False), tokenizer


def goal_of(plan: Plan, tokenizer: Any) -> Objective:
    """The objective of a plan."""
    assert isinstance(plan.objective, Answers)
    return objective_of(fit_to_tokenizer(plan, tokenizer), tokenizer)


def ours(folder: Path, view: Examples, lora: bool, precision: str, **more: Any) -> Callable[[], int]:
    """A function that takes a step of Stemma's loop and returns the tokens of its examples."""
    plan, tokenizer = plan_of(folder, view, lora, precision, **more)
    goal = goal_of(plan, tokenizer)
    source = TextSource(plan, goal, view)  # type: ignore[arg-type]
    loop = loop_over(plan, tokenizer, goal, source)
    order = goal.order(view)  # type: ignore[arg-type]

    def step() -> int:
        begin = loop.cursor.slot
        loop.advance()
        return sum(len(view[order[slot][0]]) - 1 for slot in range(begin, loop.cursor.slot))

    return step


def our_loss(folder: Path, view: Examples, number: int) -> float:
    """Stemma's mean loss of the first examples."""
    import stemma

    plan, tokenizer = plan_of(folder, view, False, "fp32")
    goal: Any = goal_of(replace(plan, train=replace(plan.train, context=2048)), tokenizer)  # room for two of any length
    batch = goal.collate([goal.example(view, [k, k + 1]) for k in range(0, number, 2)])
    with torch.no_grad():
        return float(goal.loss(stemma.load(folder), batch).total())


# ---------------------------------------------------------------- theirs


def theirs(folder: Path, view: Examples, lora: bool, precision: str, best: bool, out: str) -> Any:
    """trl's trainer: with its defaults, or `best`: packed rows of 1,024 tokens, nothing computed twice, and about as
    many tokens a step as Stemma. Both learn the answers alone."""
    import datasets
    import transformers as hf
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    hf.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    rows = {
        "input_ids": [one.ids.tolist() for one in view.held],
        "completion_mask": [[0] * one.answer + [1] * (len(one.ids) - one.answer) for one in view.held],
    }
    tokens = sizes.fitting(view.measured, 1024, False)["recipe.batch"]
    more: dict[str, Any] = {}
    if best:
        more = dict(
            packing=True, gradient_checkpointing=False, per_device_train_batch_size=max(1, round(tokens / 1024))
        )
    settings = SFTConfig(
        out, max_steps=10**6, report_to=[], save_strategy="no", logging_strategy="no", bf16=precision == "bf16",
        use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, completion_only_loss=True, seed=1, **more,
    )  # fmt: skip
    adapter = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    steps = _Steps()
    trainer = SFTTrainer(
        hf.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), settings,
        train_dataset=datasets.Dataset.from_dict(rows), processing_class=hf.AutoTokenizer.from_pretrained(folder),
        peft_config=adapter if lora else None, callbacks=[steps.callback()],
    )  # fmt: skip
    trainer.remove_callback(hf.PrinterCallback)
    return trainer, steps


def stepper(trainer: Any, steps: _Steps) -> Callable[[], int]:
    """A function that takes a step of a trainer and returns the tokens of its examples that are followed by another."""

    def count(inputs: Any) -> int:
        ids, places = inputs["input_ids"], inputs.get("position_ids")
        real = int((ids != PAD).sum())
        return real - (int((places == 0).sum()) if places is not None else len(ids))

    return steps.counting(trainer, count)


def their_loss(folder: Path, view: Examples, number: int, out: str) -> float:
    """trl's loss of the first examples."""
    trainer, _ = theirs(folder, view, False, "fp32", False, out)
    rows = [trainer.train_dataset[i] for i in range(number)]
    batch = trainer.data_collator(rows)
    assert int((batch["labels"] != IGNORED).sum()) == sum(len(o.ids) - o.answer for o in view.held[:number])
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, batch))
