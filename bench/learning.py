"""How far short runs get: held-out bits of a family's own targets beside a model of word frequencies.

    python bench/learning.py [--steps 300] [--data builtin:bible] [--json FILE] [NAME ...]

Each family is pretrained by its own recipe and objective at tiny scale, from one seed, for the same number of steps.
`unigram` is what the frequencies of the training text's tokens leave of a held-out token, in bits a byte, with both sides
counted in bytes as `stemma pretrain` does; a family that is told of languages reads `builtin:parallel`. Where targets are no
tokens (ELECTRA), all that was measured is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from stemma.train import pretrain, resolve

NAMES = [
    "bert",
    "roberta",
    "albert",
    "deberta",
    "electra",
    "xlm",
    "xlm-r",
    "xlnet",
    "unilm",
    "gpt1",
    "gpt2",
    "gpt3",
    "llama",
    "mistral",
    "palm",
    "u-palm",
    "glm",
    "t5",
    "mt5",
    "mass",
    "bart",
    "ul2",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--data", default="builtin:bible")
    parser.add_argument("--vocab", type=int, default=2000)
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("names", nargs="*", default=NAMES)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(f"{options.steps} steps, {options.data}, vocabulary {options.vocab}")
    print(f"{'':12}{'held out':>10}{'unigram':>10}{'seconds':>9}   in bits a byte")
    found = {}
    for name in options.names:
        suited = resolve(name).data
        source = suited if suited.startswith("builtin:parallel") else options.data
        with tempfile.TemporaryDirectory() as folder:
            run = pretrain(
                name, data=source, out=Path(folder) / "run", budget=f"{options.steps} steps",
                overrides={"dims.vocab": options.vocab, "train.eval_tokens": 20_000}, quiet=True,
            )  # fmt: skip
        val, unigram = run.summary["val"], run.summary["baselines"]["unigram_bits_per_byte"]
        bits = val.get("bits_per_byte", val.get("bits_per_target_byte"))
        found[name] = {"val": val, "unigram_bits_per_byte": unigram, "seconds": run.summary["seconds"]}
        said = f"{bits:10.3f}{unigram:10.3f}{run.summary['seconds']:9.0f}" if bits is not None else f"   {val}"
        print(f"{name:12}{said}", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
