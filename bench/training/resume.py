"""What a run that was stopped in the middle of an epoch differs by from one that was not, with masks drawn on the way."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma.declare import objectives as declared
from stemma.nn.model import Model
from stemma.objectives import Setting, objective
from stemma.train import Loop
from stemma.train.source import TextSource
from training import LR, VOCAB
from training.ours import plan_of
from training.rows import Tokens, View

WIDTH, LAYERS, HEADS, ROWS, CONTEXT = 64, 2, 2, 8, 64
DOCUMENTS, STOP, MORE = 128, 6, 23  # 16 steps an epoch


def compare() -> dict[str, float]:
    """The largest difference between parameters of the two runs, of transformers' Trainer with its collator for masked
    tokens, of the same with rows masked once (which tells what else differs) and of Stemma's loop: BERT's small relative,
    fp32, no dropout, `STOP` steps, a checkpoint, `MORE` steps."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            "Trainer": _trainer(Path(folder) / "trainer", drawn=True),
            "Trainer, masks made beforehand": _trainer(Path(folder) / "fixed", drawn=False),
            "Stemma": _stemma(Path(folder) / "stemma"),
        }


def _apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def _stemma(folder: Path) -> float:
    plan = plan_of("bert", "fp32")
    sizes: dict[str, Any] = {"d_model": WIDTH, "layers": LAYERS, "heads": HEADS, "d_ff": 4 * WIDTH, "context": CONTEXT}
    recipe = replace(plan.recipe, batch=ROWS * CONTEXT, steps=STOP + MORE)
    plan = replace(
        plan,
        dims=replace(plan.dims, **sizes),
        recipe=recipe,
        train=replace(plan.train, micro=ROWS),
        objective=declared.MLM(),
    )
    setting = Setting(Tokens(), plan.text, CONTEXT, 1, structure="encoder")
    view = View(DOCUMENTS, CONTEXT - 2, 1)

    def loop() -> Loop:
        model = Model(plan.arch, plan.dims).initialise(1)
        goal = objective(plan.objective, setting)
        return Loop(plan, model, goal, TextSource(plan, goal, view))

    whole = loop()
    for step in range(STOP + MORE):
        if step == STOP:
            saved = whole.save(folder)
        whole.advance()
    again = loop()
    again.restore(saved)
    for _ in range(MORE):
        again.advance()
    return _apart(whole.learners.tensors(), again.learners.tensors())


def _trainer(folder: Path, drawn: bool) -> float:
    """`drawn`: the collator masks rows when they are read; else they are masked once, before both runs."""
    import transformers
    from tokenizers import Tokenizer, models

    ids = View(DOCUMENTS, CONTEXT - 2, 1).ids
    words = {f"[{name}]": i for i, name in enumerate(("PAD", "CLS", "SEP", "MASK", "UNK"))}
    words |= {str(i): i for i in range(len(words), VOCAB)}
    roles = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "CLS", "SEP", "MASK", "UNK")}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="[UNK]")), **roles
    )
    data: list[Any] = [{"input_ids": torch.tensor([1, *row, 2])} for row in ids.tolist()]
    collator: Any = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    if not drawn:
        torch.manual_seed(2)
        masked = collator(data)
        data = [{k: v[i] for k, v in masked.items()} for i in range(len(data))]
        collator = transformers.default_data_collator

    def trainer() -> Any:
        torch.manual_seed(1)
        config = transformers.BertConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH, max_position_embeddings=CONTEXT,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        arguments = transformers.TrainingArguments(
            str(folder), per_device_train_batch_size=ROWS, max_steps=STOP + MORE, learning_rate=LR, report_to=[],
            save_strategy="steps", save_steps=STOP, logging_strategy="no", use_cpu=True, disable_tqdm=True, seed=1,
            dataloader_pin_memory=False,
        )  # fmt: skip
        model = transformers.BertForMaskedLM(config)
        made = transformers.Trainer(model, arguments, train_dataset=data, data_collator=collator)
        made.remove_callback(transformers.PrinterCallback)
        return made

    whole = trainer()
    whole.train()
    again = trainer()
    again.train(resume_from_checkpoint=str(folder / f"checkpoint-{STOP}"))
    assert again.state.global_step == STOP + MORE
    first, second = (dict(t.model.named_parameters()) for t in (whole, again))
    return _apart({k: p.detach() for k, p in first.items()}, {k: p.detach() for k, p in second.items()})
