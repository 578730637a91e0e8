"""What `bench/train.py` runs in turns: one small network on the same rows, trained by Stemma, by transformers' Trainer and,
for objectives that the Trainer does not have, by an ordinary loop around transformers' networks."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "src"))

VOCAB, WIDTH, LAYERS, HEADS = 8192, 256, 4, 8
CONTEXT = 128
LR, DECAY, CLIP = 1e-4, 0.01, 1.0
TRAINER = ("gpt2", "llama", "bert", "t5", "t5-114")  # families that the Trainer trains as it stands
PLAIN = ("electra", "xlnet")  # and those for which a loop has to be written


def llama_ffn() -> int:
    """Two thirds of four times the width, as LLaMA has it."""
    return 8 * WIDTH // 3
