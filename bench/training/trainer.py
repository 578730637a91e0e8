"""The side of transformers' Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from training import CLIP, DECAY, HEADS, LAYERS, LR, VOCAB, WIDTH, llama_ffn
from training.rows import Rows


def theirs(name: str, rows: Rows, precision: str, compiled: bool, folder: str) -> tuple[Callable[[], float], Any]:
    """A function that takes one step of a Trainer and returns the loss; its network."""
    import transformers
    from transformers import PrinterCallback, Trainer, TrainingArguments

    transformers.logging.set_verbosity_error()
    shape, common = rows.shape, {"vocab_size": VOCAB}
    match name:
        case "gpt2":
            config: Any = transformers.GPT2Config(
                **common, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=shape.context,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            )  # fmt: skip
            model: Any = transformers.GPT2LMHeadModel(config)
        case "llama":
            config = transformers.LlamaConfig(
                **common, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                num_key_value_heads=HEADS, intermediate_size=llama_ffn(), max_position_embeddings=shape.context,
            )  # fmt: skip
            model = transformers.LlamaForCausalLM(config)
        case "bert":
            config = transformers.BertConfig(
                **common, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                intermediate_size=4 * WIDTH, max_position_embeddings=shape.context,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            )  # fmt: skip
            model = transformers.BertForMaskedLM(config)
        case _:
            config = transformers.T5Config(
                **common, d_model=WIDTH, num_layers=LAYERS, num_decoder_layers=LAYERS, num_heads=HEADS,
                d_kv=WIDTH // HEADS, d_ff=4 * WIDTH, dropout_rate=0.0, decoder_start_token_id=0,
            )  # fmt: skip
            model = transformers.T5ForConditionalGeneration(config)
    model.config.use_cache = False
    data = [{k: torch.as_tensor(v) for k, v in row.items()} for row in rows.held]
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=shape.rows, max_steps=10**6, learning_rate=LR, max_grad_norm=CLIP,
        weight_decay=DECAY, report_to=[], save_strategy="no", logging_strategy="no", bf16=precision == "bf16",
        torch_compile=compiled, use_cpu=not torch.cuda.is_available(), disable_tqdm=True,
        dataloader_pin_memory=False, seed=1,
    )  # fmt: skip
    steps = _Steps()
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[steps.callback()])
    trainer.remove_callback(PrinterCallback)
    return steps.stepper(trainer), model


class _Steps:
    """Runs `Trainer.train` in a thread that halts after every step, so that steps can be asked for one by one."""

    def __init__(self) -> None:
        import threading

        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.stop = False
        self.failed: BaseException | None = None

    def callback(self) -> Any:
        from transformers import TrainerCallback

        outer = self

        class Halt(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                outer.go.acquire()

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                control.should_training_stop = outer.stop
                outer.done.release()

        return Halt()

    def stepper(self, trainer: Any) -> Callable[[], float]:
        import threading

        threads = torch.get_num_threads()

        def work() -> None:
            torch.set_num_threads(threads)  # the setting is per thread
            try:
                trainer.train()
            except BaseException as error:
                self.failed = error
                self.done.release()

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()

        def step() -> float:
            self.go.release()
            self.done.acquire()
            if self.failed is not None:
                raise self.failed
            return 0.0

        step.finish = self.finish  # type: ignore[attr-defined]
        return step

    def adding(self, trainer: Any, seen: list[int]) -> Callable[[], int]:
        """Takes a step of a trainer, and returns the sum of what it put into `seen`."""
        advance = self.stepper(trainer)

        def step() -> int:
            seen.clear()
            advance()
            return sum(seen)

        step.finish = self.finish  # type: ignore[attr-defined]
        return step

    def counting(self, trainer: Any, count: Callable[[Any], int]) -> Callable[[], int]:
        """Takes a step of a trainer, and returns what `count` says of its batches together."""
        seen: list[int] = []
        inner = trainer.training_step

        def counted(model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            seen.append(count(inputs))
            return inner(model, inputs, *rest, **more)

        trainer.training_step = counted
        return self.adding(trainer, seen)

    def finish(self) -> None:
        self.stop = True
        self.go.release()
        self.thread.join(300)
