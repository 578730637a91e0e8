"""How far short runs get: held-out bits of a family's own targets beside a model of word frequencies.

    python bench/learning.py [--steps 300] [--data builtin:bible] [--json FILE] [NAME ...]

Each family is pretrained by its own recipe and objective at tiny scale, from one seed. One that predicts every token (or
writes its targets one after another) takes `--steps` steps; one that predicts about 15 % of them takes `SPARSE` times as
many, which is as many predictions. `unigram` is what the frequencies of the training text's tokens leave of a held-out
token, in bits a byte, with both sides counted in bytes as `stemma pretrain` does; a family that is told of languages
reads `builtin:parallel`. ELECTRA's detector is measured in bits a token, beside what the share of replaced tokens
leaves of one. `electra` is as it is declared; `electra*` is electra-base, whose generator is a third as wide as it,
with rotary positions.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from stemma.train import pretrain, resolve

SPARSE = 7
MASKED = ("bert", "roberta", "albert", "deberta", "electra", "electra*", "xlm", "xlm-r", "xlnet", "unilm")
# which token stands beside which takes long to learn from a table of positions
CHANGED = {"electra*": ("electra-base", {"arch.position": "Rotary()"})}
WRITTEN = (
    "gpt1", "gpt2", "gpt3", "llama", "mistral", "palm", "u-palm", "glm", "t5", "mt5", "mass", "bart", "ul2",
)  # fmt: skip


def learn(name: str, steps: int, data: str = "builtin:bible", vocab: int = 2000) -> dict[str, Any]:
    """A run of `name`; what it was measured to leave (`bits`), what frequencies leave (`unigram`), steps and seconds."""
    name, changes = CHANGED.get(name, (name, {}))
    suited = resolve(name).data
    source = suited if suited.startswith("builtin:parallel") else data
    with tempfile.TemporaryDirectory() as folder:
        run = pretrain(
            name, data=source, out=Path(folder) / "run", budget=f"{steps} steps",
            overrides={"dims.vocab": vocab, "train.eval_tokens": 20_000} | changes, quiet=True,
        )  # fmt: skip
    val, unigram = run.summary["val"], run.summary["baselines"]["unigram_bits_per_byte"]
    bits = val.get("bits_per_byte", val.get("bits_per_target_byte"))
    if "replaced_share" in val:
        share = val["replaced_share"]
        bits = val["bits_per_target"]
        unigram = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    return {"steps": steps, "bits": bits, "unigram": unigram, "seconds": run.summary["seconds"], "val": val}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--data", default="builtin:bible")
    parser.add_argument("--vocab", type=int, default=2000)
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("names", nargs="*", default=[*MASKED, *WRITTEN])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(f"{options.data}, vocabulary {options.vocab}")
    print(f"{'':10}{'steps':>6}{'held out':>10}{'unigram':>10}{'below':>8}{'seconds':>9}")
    found = {}
    for name in options.names:
        steps = options.steps * (SPARSE if name in MASKED else 1)
        found[name] = row = learn(name, steps, options.data, options.vocab)
        below = 1 - row["bits"] / row["unigram"]
        figures = f"{steps:6}{row['bits']:10.3f}{row['unigram']:10.3f}{below:8.1%}{row['seconds']:9.0f}"
        print(f"{name:10}{figures}", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
