"""Proof that a refactoring changes no number: digests of what every family computes and of what every objective learns.

    python scripts/identical.py --write before.json      # in the old checkout
    python scripts/identical.py --against before.json    # in the new one, on the same machine

A digest covers the logits of each family at small size, the losses and gradient norms of four steps with each
objective, the files of the trained model, and what it writes greedily. Bits depend on the machine and on torch, so
the digests of one machine are of no use on another. Only the public interface is called. About two minutes."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch

import stemma
from stemma import data
from stemma.errors import StemmaError
from stemma.train import resolve

SMALL = {"dims.vocab": 600, "train.eval_tokens": 1500, "train.threads": 1, "train.save_every": 2}
NAMES = [
    "bert", "roberta", "albert", "deberta", "deberta-v2", "deberta-v3", "electra", "xlm", "xlm-clm", "xlm-r",
    "xlnet", "unilm", "gpt1", "gpt2", "gpt3", "llama", "mistral", "mixtral", "palm", "u-palm", "glm",
    "glm-130b", "t5", "t5-v1.1", "mt5", "umt5", "mass", "bart", "mbart", "ul2", "codellama", "transformer",
    "qwen3", "gemma2", "longllama", "chatglm2", "all-minilm",
]  # fmt: skip
# what is trained: a family, and the objective that it gets where that is not its own
RUNS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in NAMES} | {
    f"{name} {objective}": (name, {"objective": objective})
    for name, objective in [
        ("t5", "PrefixLM()"),
        ("t5", "Corruption()"),
        ("t5", "Deshuffle()"),
        ("t5", "Fragment()"),
        ("bart", "Spans()"),
        ("gpt2", "Blanks()"),
    ]
}
# where `train.matrices` decides something, both ways
RUNS |= {"xlnet": ("xlnet", {"train.matrices": "shape"}), "xlnet by use": ("xlnet", {})}
TAUGHT = ("distilbert", "minilm")  # by the run of bert
WRITES = ("gpt2", "llama", "palm", "mistral", "t5", "bart", "glm", "xlnet", "mixtral", "gemma2")


def text(folder: Path, source: str) -> Path:
    """About 100 kB of a built-in text as rows."""
    path = folder / (source.replace(":", "-") + ".jsonl")
    if not path.exists():
        held: dict[str, list[str]] = {}
        for document in data.read(source).documents():
            rows = held.setdefault(document.language or "", [])
            if len(rows) < 150:
                row = {"text": " ".join(document.text.split())[:3000]}
                if document.language:
                    row |= {"lang": document.language, "group": document.group}
                rows.append(json.dumps(row, ensure_ascii=False))
            elif source == "builtin:docs":
                break
        path.write_text("\n".join(row for rows in held.values() for row in rows) + "\n", "utf-8")
    return path


def digest(*parts: Any) -> str:
    """What tells numbers, tensors and bytes from others."""
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, torch.Tensor):
            part = part.detach().contiguous().view(torch.uint8).numpy().tobytes()
        found.update(part if isinstance(part, bytes) else repr(part).encode())
    return found.hexdigest()


def content(path: Path) -> bytes:
    """The bytes of a file; those of safetensors as the library lays them out, whatever fills the header."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    from safetensors.torch import load_file, save

    return save(load_file(path), {"format": "pt"})


def forward(name: str) -> dict[str, str]:
    """The first size of a family at small widths, on ids with a mask: a digest of the network and its LM head, and one
    of what other heads answer."""
    design = stemma.design(name)
    widths: dict[str, Any] = {"d_model": 48, "layers": 3, "d_ff": 64, "vocab": 97, "context": 64}
    if design.dims.heads % 6 == 0 or design.dims.heads >= 6:
        widths |= {"heads": 6}
    if design.dims.kv_heads:
        widths |= {"kv_heads": 2 if design.dims.kv_heads > 1 else 1}
    if design.dims.embed:
        widths |= {"embed": 20}
    model = stemma.build(name, **widths).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
        ids = torch.randint(5, 97, (2, 21), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 17:] = 0
        more = {"decoder_input_ids": ids.flip(1)} if design.arch.structure == "encoder-decoder" else {}
        out = model(ids, attention_mask=mask, **more)
    lm = out.logits if model.lm is not None else None
    found = {"logits": digest(*(t for t in (out.hidden, lm, out.pooled) if t is not None))}
    replaced = out.logits if lm is None else out.detector_logits
    return found | ({} if replaced is None else {"detector": digest(replaced)})


def learned(name: str, changes: dict[str, Any], folder: Path, out: Path) -> dict[str, str]:
    """A run of four steps."""
    source = text(folder, resolve(name).data)
    settings = {**SMALL, **changes}
    run = stemma.pretrain(name, data=str(source), out=out, budget="4 steps", overrides=settings, quiet=True)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = {"losses": digest([[r["loss"], r["grad_norm"]] for r in records], run.summary["val"])}
    files = sorted(p for p in (out / "model").iterdir() if p.suffix in (".json", ".safetensors"))
    found["files"] = digest(*((p.name, content(p)) for p in files))
    if name in WRITES and not changes:
        with contextlib.suppress(Exception):
            found["text"] = digest(stemma.generate(run.model, ["The word of"], max_new_tokens=12, temperature=0))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--keep", type=Path, help="a folder for the runs")
    parser.add_argument("names", nargs="*", help="only these runs and families")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ["STEMMA_EXECUTOR"] = "off"  # its sums have another order
    from stemma import families

    found: dict[str, Any] = {}
    for name, family in families.tree().items():
        if family.sizes and family.edge != "trained" and (not args.names or name in args.names):
            try:
                found |= {f"{name}: {k}": v for k, v in forward(name).items()}
            except StemmaError as error:
                found[f"{name}: logits"] = f"refused: {type(error).__name__}"
    with tempfile.TemporaryDirectory(prefix="stemma-identical-") as temporary:
        folder, runs = Path(temporary), args.keep or Path(temporary, "runs")
        runs.mkdir(parents=True, exist_ok=True)
        jobs = dict(RUNS) | {n: (n, {"objective.teacher": str(runs / "bert" / "model")}) for n in TAUGHT}
        for label, (name, changes) in jobs.items():
            if args.names and name not in args.names and label not in args.names:
                continue
            out = runs / label.replace(" ", "-").replace("()", "")
            shutil.rmtree(out, ignore_errors=True)
            try:
                got = learned(name, changes, folder, out)
            except StemmaError as error:
                got = {"refused": f"{type(error).__name__}: {error}"}
            found |= {f"{label}: {k}": v for k, v in got.items()}
            print(label, *got.values(), file=sys.stderr, flush=True)
    if args.write:
        args.write.write_text(json.dumps(found, indent=1) + "\n")
    if args.against:
        before = json.loads(args.against.read_text())
        refused = {k.rpartition(": ")[0] for k in before if k.endswith(": refused")}  # these may run by now
        new = [k for k in found if k not in before and k.rpartition(": ")[0] not in refused]  # of families since then
        wrong = [k for k in found if k in before and found[k] != before[k] and k.rpartition(": ")[0] not in refused]
        known = f"{len(found)} digests, {len(new)} new, {len(wrong)} differ"
        print(known + "".join(f"\n  {k}" for k in wrong))
        return 1 if wrong else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
