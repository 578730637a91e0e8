"""Encoder-decoders beside transformers: a forward pass of 8 texts of 128 tokens, and 64 new tokens for 1 and 8 prompts.

    python bench/seq2seq.py [--rounds 15] [--new 64]

Both run the same weights in one process, in turn, so that what else the machine does falls on both; medians are
compared. Decoding takes half as many rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

import stemma

WIDE = dict(vocab_size=8000, d_model=256)
MODELS: dict[str, tuple[Any, Any]] = {
    "bart": (
        hf.BartForConditionalGeneration,
        hf.BartConfig(**WIDE, encoder_layers=4, decoder_layers=4, encoder_attention_heads=8, decoder_attention_heads=8,
                      encoder_ffn_dim=1024, decoder_ffn_dim=1024, forced_eos_token_id=None),
    ),
    "mt5": (
        hf.MT5ForConditionalGeneration,
        hf.MT5Config(**WIDE, num_layers=4, num_decoder_layers=4, num_heads=8, d_kv=32, d_ff=640),
    ),
}  # fmt: skip


def medians(a: Callable[[], Any], b: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Median seconds of two functions that run in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 2):
        for run, kept in zip((a, b), times, strict=True):
            start = time.perf_counter()
            run()
            if turn >= 2:  # what comes first is warming up
                kept.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def compare(name: str, rounds: int, new: int) -> None:
    make, config = MODELS[name]
    torch.manual_seed(0)
    theirs = make(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = stemma.load(folder)
    ids = torch.randint(5, 8000, (8, 128))
    mask = torch.ones_like(ids)

    def say(what: str, mine: float, other: float) -> None:
        print(f"{name:5} {what:22} {1000 * mine:8.1f} ms  {1000 * other:8.1f} ms  {other / mine:5.2f}x", flush=True)

    with torch.inference_mode():
        both = medians(
            lambda: ours(ids, mask, decoder_input_ids=ids).logits,
            lambda: theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=ids, use_cache=False).logits,
            rounds,
        )
        say("forward 8x128", *both)
        for rows in (1, 8):
            prompts = ids[:rows]
            both = medians(
                lambda p=prompts: stemma.generate(ours, p.tolist(), max_new_tokens=new, ignore_eos=True),
                lambda p=prompts: theirs.generate(
                    p, attention_mask=torch.ones_like(p), do_sample=False, min_new_tokens=new, max_new_tokens=new
                ),
                max(1, rounds // 2),
            )
            say(f"decode {new}, {rows} row{'s' * (rows > 1)}", *both)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--new", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    print(f"{'':28} {'stemma':>11}  {'transformers':>11}  ratio")
    for model in MODELS:
        compare(model, options.rounds, options.new)


if __name__ == "__main__":
    main()
