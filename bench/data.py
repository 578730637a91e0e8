"""What cleaning and tokenising cost: megabytes of text a second of one core's time.

    python bench/data.py [--json FILE]

The text is `builtin:docs` and `builtin:code`, held in memory, so that reading is not counted. Seconds are of the
processor (of the processes that tokenise, too), not of the clock, so that a busy machine changes little.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from stemma.data import Document, Store, cleaning, read, sources
from stemma.text import Specials, Tokenizer

STEPS = ("exact", "near", "gopher", "repetition", "c4", "script")
VOCAB = 8000


def spent(work: Callable[[], object]) -> float:
    """Seconds of the processor that `work` takes, with those of processes that it started and waited for."""
    before = os.times()
    work()
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--json", help="write the numbers to this file")
    options = parser.parse_args()
    held = [Document(d.text, d.name) for name in ("docs", "code") for d in read(f"builtin:{name}").documents()]
    size = sum(len(d.text.encode()) for d in held) / 1e6
    source = sources.of(held)
    print(f"{len(held):,} documents, {size:.1f} MB")
    speeds: dict[str, float] = {}
    for step in STEPS:
        cleaned = cleaning.cleaned(source, cleaning.parse(step))
        speeds[step] = size / spent(lambda cleaned=cleaned: sum(1 for _ in cleaned.documents()))  # type: ignore[misc]
        print(f"{step:12}{speeds[step]:8.1f} MB/s", flush=True)
    tokenizer = Tokenizer.train("bpe", (d.text for d in held), VOCAB, Specials(bos="<s>", eos="</s>"))
    texts = [d.text for d in held]
    with tempfile.TemporaryDirectory() as folder:
        speeds["store"] = size / spent(lambda: Store.build(source, tokenizer, folder, workers=1))
    speeds["library"] = size / spent(lambda: tokenizer.encode_spans(texts))
    print(f"{'store':12}{speeds['store']:8.1f} MB/s\n{'library':12}{speeds['library']:8.1f} MB/s")
    if options.json:
        Path(options.json).write_text(json.dumps(speeds, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
