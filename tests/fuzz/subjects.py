"""Whole folders that are right, written by Stemma itself: what the fuzzer damages. Each has the commands that read it."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fuzz import tuned
from stemma.families import tree
from stemma.text import Specials, Tokenizer
from tiny import build, tiny

PROMPT = "The cat sees a [MASK] and"
SMALL = [
    "dims.d_model=16", "dims.layers=1", "dims.heads=2", "dims.kv_heads=2", "dims.d_ff=24", "dims.vocab=300", "dims.context=32",
    "recipe.batch=64", "train.eval_tokens=64", "train.threads=1", "train.precision=fp32", "train.save_every=1",
]  # fmt: skip
PRETRAIN = [word for change in SMALL for word in ("--set", change)]
BERT = dict(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
ROBERTA = dict(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>", mask="[MASK]", cls="<s>", sep="</s>")
ROLES = {  # special tokens by family; others have BERT's
    "gpt2": dict(bos="<|end|>", eos="<|end|>"), "t5": dict(pad="<pad>", eos="</s>", unk="<unk>"),
    "llama": dict(bos="<s>", eos="</s>", unk="<unk>"), "gemma3": dict(bos="<bos>", eos="<eos>", pad="<pad>", unk="<unk>"),
    "bart": ROBERTA, "roberta": ROBERTA, "xlm": ROBERTA,
}  # fmt: skip

FIXED: dict[str, dict[str, Any]] = {  # what GGUF and llama2.c have no names for
    "t5": {"arch.position.distance": 128, "arch.position.buckets": 32},
    "llama": {"dims.kv_heads": 2, "arch.norm.eps": 1e-5},
}


@dataclass(frozen=True)
class Subject:
    """`make` writes the files into a folder. A command is words (`{m}`: the folder, `{f}`: a file of it) for the command
    line, or begins with `python:` and names a function of `tries`. `weight`: how often it is drawn."""

    make: Callable[[Path], None]
    commands: tuple[tuple[str, ...], ...]
    weight: int = 2


def texts(count: int = 60) -> list[str]:
    draw = random.Random(5)
    nouns, verbs = ["cat", "dog", "bird", "king", "river", "stone", "tree"], ["sees", "finds", "keeps", "hears"]
    one = lambda: f"The {draw.choice(nouns)} {draw.choice(verbs)} the {draw.choice(nouns)}."  # noqa: E731
    return [" ".join(one() for _ in range(draw.randint(2, 9))) for _ in range(count)]


def tokenizer(family: str, kind: str) -> Tokenizer:
    import warnings

    size = {"wordpiece": 120, "gpt-bpe": 120, "bpe": 320}.get(kind, 340)
    specials = Specials(**ROLES.get(family, BERT), extra=4 if family == "t5" else 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Tokenizer.train(kind, texts(), size, specials, lowercase=family == "bert")


def model(family: str, kind: str, **changes: Any) -> Any:
    """A tiny model of a family with a tokenizer."""
    torch.set_num_threads(1)
    words = tokenizer(family, kind)
    ids = {f"text.{role}_id": getattr(words, f"{role}_id") for role in ("bos", "eos", "pad", "mask")}
    narrow = {"dims.d_model": 36, "dims.layers": 2, "dims.vocab": words.vocab_size} | FIXED.get(family, {}) | changes
    design = tiny(family, **narrow, **{k: v for k, v in ids.items() if k != "text.mask_id" or v is not None})
    made = build(design)
    with torch.no_grad():
        for name, value in made.named_parameters():
            value.mul_("segment" not in name)  # which fairseq's layout lacks
    made.design, made.family, made.tokenizer, made.name = design, tree()[family], words, design.name
    return made


def _hf(
    family: str, kind: str, more: Callable[[Path], None] = lambda folder: None, **options: Any
) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        model(family, kind).save(folder, **options)
        more(folder)

    return make


def _beside(folder: Path) -> None:
    """Files that published checkpoints have beside their weights."""
    settings = dict(temperature=0.7, top_k=5, top_p=0.9, max_new_tokens=6, do_sample=True, repetition_penalty=1.1,
                    num_beams=1, eos_token_id=[1, 2], bad_words_ids=[[5, 6]], suppress_tokens=[7],
                    forced_eos_token_id=1, no_repeat_ngram_size=3, length_penalty=1.0, min_new_tokens=1)  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(settings))
    (folder / "added_tokens.json").write_text('{"<|x|>": 118}')
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "LICENSE").write_text("A licence\n")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")


def _sentences(folder: Path) -> None:
    """What sentence-transformers has beside a model."""
    parts = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    listed = [
        {"idx": int(n), "name": n, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, path, kind in parts
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20, "do_lower_case": false}')
    (folder / "config_sentence_transformers.json").write_text(
        '{"prompts": {"query": "q: "}, "default_prompt_name": "query"}'
    )
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 36, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def _old_weights(folder: Path) -> None:
    """The same weights as a file of torch."""
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _legacy(folder: Path) -> None:
    """A vocabulary in the older files in place of tokenizer.json."""
    state = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    vocab = state["vocab"]
    if state["type"] == "WordPiece":
        (folder / "vocab.txt").write_text("".join(f"{name}\n" for name in vocab), "utf-8")
    else:
        (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
        pairs = [m if isinstance(m, str) else " ".join(m) for m in state["merges"]]
        (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{m}\n" for m in pairs), "utf-8")
    (folder / "tokenizer.json").unlink()


def _spiece(kind: str, name: str) -> Callable[[Path], None]:
    """A SentencePiece model in place of tokenizer.json, of the same size."""

    def make(folder: Path) -> None:
        import io

        import sentencepiece

        size = len(Tokenizer.load(folder)) - (4 if kind == "unigram" else 0)
        out = io.BytesIO()
        options = dict(model_type="bpe" if kind == "spm-bpe" else "unigram", byte_fallback=True, vocab_size=size,
                       hard_vocab_limit=False, pad_id=3, minloglevel=2, num_threads=1)  # fmt: skip
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts()), model_writer=out, **options)
        (folder / name).write_bytes(out.getvalue())
        for old in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            (folder / old).unlink()
        (folder / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 4 if kind == "unigram" else 0}))

    return make


def _adapter(folder: Path) -> None:
    """A model and an adapter beside it, in PEFT's format."""
    from stemma.rewrites import LoRA, apply

    made = model("llama", "spm-bpe")
    made.save(folder / "model")
    apply(made, (LoRA(("*.q", "*.v"), rank=2),))
    made.save(folder / "adapter", layout="peft")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "m/model"  # from the folder of a case
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config, indent=2))


def _talks(folder: Path) -> None:
    """Conversations in rows of each shape."""
    folder.mkdir()
    say = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
    ]
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    tree = {"text": "Hi", "role": "prompter", "replies": [{"text": "Hello.", "role": "assistant", "replies": []}]}
    rows: list[dict[str, Any]] = [
        {"messages": say}, {"conversations": turns, "system": "x"}, {"dialog": ["Hi", "Hello."]}, {"prompt": tree},
        {"instruction": "Say hi", "input": "", "output": "Hi"}, {"prompt": "Hi", "completion": "Hello."},
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _file(family: str, kind: str, name: str, **options: Any) -> Callable[[Path], None]:
    """A file of another layout, with what it needs beside it."""

    def make(folder: Path) -> None:
        folder.mkdir()
        model(family, kind).save(folder / name, **options)

    return make


# ---------------------------------------------------------------- texts and settings


def _texts(folder: Path) -> None:
    """One text in files of every kind."""
    import bz2
    import gzip
    import lzma

    import pyarrow as arrow
    from pyarrow import parquet

    folder.mkdir()
    rows = [{"text": text, "lang": "en" if i % 2 else "de", "group": str(i // 2)} for i, text in enumerate(texts())]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    plain = "\n\n".join(row["text"] for row in rows).encode()
    table = "text,lang\n" + "".join(f'"{row["text"]}",{row["lang"]}\n' for row in rows)
    for name, content in {
        "a.jsonl": lines, "a.json": json.dumps(rows).encode(), "a.txt": plain, "a.csv": table.encode(),
        "a.tsv": table.replace('",', '"\t').replace("text,", "text\t").encode(), "b.jsonl.gz": gzip.compress(lines),
        "b.txt.bz2": bz2.compress(plain), "b.jsonl.xz": lzma.compress(lines),
        "b.txt.zst": arrow.compress(plain, codec="zstd", asbytes=True),
    }.items():  # fmt: skip
        (folder / name).write_bytes(content)
    made = arrow.table({key: [row[key] for row in rows] for key in rows[0]})
    parquet.write_table(made, folder / "a.parquet", row_group_size=20)
    with arrow.OSFile(str(folder / "a.arrow"), "wb") as out, arrow.ipc.new_stream(out, made.schema) as stream:
        stream.write_table(made, max_chunksize=20)
    with arrow.OSFile(str(folder / "b.arrow"), "wb") as out, arrow.ipc.new_file(out, made.schema) as file:
        file.write_table(made)


def _saved_set(folder: Path) -> None:
    """A folder as `datasets` saves one."""
    _texts(folder)
    (folder / "train").mkdir()
    shutil.move(folder / "a.arrow", folder / "train" / "data-00000-of-00001.arrow")
    for other in [path for path in folder.iterdir() if path.is_file()]:
        other.unlink()
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (folder / "train" / "dataset_info.json").write_text('{"features": {"text": {"dtype": "string", "_type": "Value"}}}')
    (folder / "train" / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')


def _settings(folder: Path) -> None:
    import yaml

    folder.mkdir()
    plan = {
        "name": "bert", "seed": 3, "scale": "tiny", "dims": {"d_model": 16, "layers": 1, "heads": 2, "d_ff": 24},
        "recipe": {"lr": 0.001, "batch": 64, "steps": 2}, "objective": {"rate": 0.2},
        "arch": {"norm": {"kind": "LayerNorm", "eps": 1e-6}}, "train.precision": "fp32", "train": {"micro": 2},
    }  # fmt: skip
    (folder / "x.yaml").write_text(yaml.safe_dump(plan))
    (folder / "x.json").write_text(json.dumps(plan))
    (folder / "x.toml").write_text(
        'name = "gpt2"\nseed = 3\n[dims]\nd_model = 16\nlayers = 1\nheads = 2\n[recipe]\nlr = 0.001\nbatch = 64\n'
        '[arch.norm]\nkind = "RMSNorm"\neps = 1e-6\n[train]\nbudget = "2 steps"\nprecision = "fp32"\n'
    )


# ---------------------------------------------------------------- runs


class Stop(Exception):
    """Ends a run before its end."""


@contextlib.contextmanager
def _text_of(folder: Path) -> Iterator[Path]:
    path = folder.with_name(".rows.jsonl")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()), "utf-8")
    try:
        yield path
    finally:
        path.unlink()


def train(family: str, folder: Path, stop: int | None = None, steps: int = 3) -> None:
    """A run of a family; `stop`: it ends after that step."""
    from stemma.train import pretrain

    def after(record: dict[str, Any]) -> None:
        if record["step"] == stop:
            raise Stop

    changes = dict(change.split("=") for change in SMALL)
    with _text_of(folder) as text, contextlib.suppress(Stop):
        pretrain(
            family, data=str(text), out=folder, budget=f"{steps} steps", overrides=changes, quiet=True, on_step=after
        )


def sharded(run: Path) -> None:
    """Turn the last checkpoint of a run into one in shards, as several processes write it; earlier ones go."""
    from stemma.parallel import checkpoint as shards
    from stemma.runs import checkpoint

    *others, place = checkpoint.steps(run)
    weights, slots, state = checkpoint.load(place)
    step = checkpoint.step_of(place)
    for old in (*others, place):
        checkpoint.remove(old)
    shards.write(run / "checkpoints" / ".shards", {"model": weights, "optimizer": slots}, {})
    state = {k: v for k, v in state.items() if k not in (checkpoint.SUMS, checkpoint.OWN)}
    checkpoint.save(run, (0, step), {}, {}, state, 2, shards=run / "checkpoints" / ".shards")


def _run(family: str, stop: int | None = None, shards: bool = False) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        train(family, folder, stop)
        if shards:
            sharded(folder)

    return make


# ---------------------------------------------------------------- all of them

LOOK = (("show", "{m}"), ("show", "{m}", "--json"), ("python:load", "{m}"))
SAY = (("generate", "{m}", PROMPT, "-n", "4"), ("generate", "{m}", PROMPT, "-n", "3", "--json", "--temperature", "1"),
       ("python:chat", "{m}"))  # fmt: skip
EMBED = (("embed", "{m}", PROMPT, "A dog."),)
FILL = (("fill", "{m}", PROMPT),)
CONVERT = (("convert", "{m}", "out"), ("convert", "{m}", "out.gguf"))
LLAMA = (("convert", "{m}", "out", "--to", "meta"), ("convert", "{m}", "out.bin"))
START = (
    "pretrain",
    "gpt2",
    "--quiet",
    "--from",
    "{m}",
    "--data",
    "../rows.jsonl",
    "--out",
    "out",
    "--budget",
    "1 steps",
    *PRETRAIN,
)
ENCODER = (*LOOK, *FILL, *EMBED, *CONVERT)
DECODER = (*LOOK, *SAY, *EMBED, *CONVERT)
RUN = (*LOOK, ("report", "{m}", "--out", "out.html"), ("data", "show", "{m}"), ("resume", "{m}", "--quiet"),
       ("verify", "resume", "{m}", "--steps", "2"), ("python:metrics", "{m}"))  # fmt: skip
GO_ON = RUN[5:6]
POINT = "{m}/checkpoints/step-000002"
MIDWAY = (("convert", POINT, "out"), ("embed", POINT, "A dog."))
SAYS, FILLS = ("generate", POINT, "The", "-n", "2"), ("fill", POINT, PROMPT)
DATA = (("data", "stats", "{f}"), ("data", "stats", "{f}", "--json"), ("data", "show", "{f}", "--for", "gpt2"),
        ("data", "show", "{f}", "--for", "bert", "--json"), ("data", "clean", "{f}", "--out", "out", "--steps", "exact"),
        ("python:store", "{f}"))  # fmt: skip


SUBJECTS: dict[str, Subject] = {
    "gpt2": Subject(_hf("gpt2", "bpe", _beside), DECODER, 4),
    "bert": Subject(_hf("bert", "wordpiece", _sentences), ENCODER, 3),
    "t5": Subject(_hf("t5", "unigram"), (*LOOK, *SAY[:2], *FILL, *CONVERT)),
    "llama": Subject(_hf("llama", "spm-bpe", _beside), (*DECODER, *LLAMA), 3),
    "xlm": Subject(_hf("xlm", "gpt-bpe"), ENCODER, 1),
    "xlnet": Subject(_hf("xlnet", "unigram"), DECODER, 1),
    "deberta": Subject(_hf("deberta-v3", "unigram"), ENCODER, 1),
    "gemma": Subject(_hf("gemma3", "spm-bpe"), DECODER, 1),
    "bart": Subject(_hf("bart", "bpe"), (*LOOK, *SAY[:2], *FILL, *CONVERT), 1),
    "shards": Subject(_hf("gpt2", "bpe", shard_bytes=20_000), DECODER),
    "bin": Subject(_hf("gpt2", "bpe", _old_weights), DECODER, 3),
    "vocab.txt": Subject(_hf("bert", "wordpiece", _legacy), ENCODER),
    "merges": Subject(_hf("gpt2", "bpe", _legacy), DECODER),
    "spiece": Subject(_hf("t5", "unigram", _spiece("unigram", "spiece.model")), (*LOOK, *SAY[:1], *CONVERT)),
    "tokenizer.model": Subject(_hf("llama", "spm-bpe", _spiece("spm-bpe", "tokenizer.model")), DECODER),
    "meta": Subject(_file("llama", "spm-bpe", "", layout="meta", shards=2), (*DECODER, *LLAMA), 3),
    "llama2c": Subject(_file("llama", "spm-bpe", "x.bin"), tuple(tuple(w.replace("{m}", "{m}/x.bin") for w in c) for c in DECODER)),
    "llama2c-v1": Subject(
        _file("llama", "spm-bpe", "x.bin", layout="llama2c-v1"), tuple(tuple(w.replace("{m}", "{m}/x.bin") for w in c) for c in DECODER), 1
    ),
    "fairseq": Subject(_file("roberta", "bpe", "x.pt"), tuple(tuple(w.replace("{m}", "{m}/x.pt") for w in c) for c in ENCODER), 3),
    **{
        f"gguf-{family}": Subject(
            _file(family, kind, "x.gguf", **({"dtype": "q8_0"} if family == "gpt2" else {})),
            tuple(tuple(w.replace("{m}", "{m}/x.gguf") for w in c) for c in commands),
        )
        for family, kind, commands in (
            ("llama", "spm-bpe", (*DECODER, *LLAMA)), ("gpt2", "bpe", DECODER), ("bert", "wordpiece", (*LOOK, *EMBED, *CONVERT)),
            ("t5", "unigram", (*LOOK, *SAY[:2], *CONVERT)),
        )
    },
    "texts": Subject(_texts, DATA, 8),
    "folder": Subject(_texts, tuple(tuple(w.replace("{f}", "{m}") for w in c) for c in DATA), 2),
    "saved": Subject(_saved_set, tuple(tuple(w.replace("{f}", "{m}") for w in c) for c in DATA), 2),
    "adapter": Subject(
        _adapter,
        (
            ("show", "{m}/adapter"), ("generate", "{m}/model", PROMPT, "-n", "3", "--adapter", "{m}/adapter"),
            ("merge", "{m}/model", "--adapter", "{m}/adapter", "--out", "out"), ("python:load", "{m}/adapter"),
            ("merge", "{m}/model", "--adapter", "{m}/adapter", "--out", "out", "--quantize", "nf4"),
            ("convert", "{m}/adapter", "out"),
        ),
    ),
    "talks": Subject(_talks, (("python:talk", "{f}"),), 1),
    "settings": Subject(_settings, (("plan", "--config", "{f}"), ("plan", "--config", "{f}", "--json"), ("python:plan", "{f}"))),
    "classified": Subject(tuned.tuned(model, texts(), "classify", "bert", "wordpiece"), (*tuned.HEAD, *tuned.AGAIN), 3),
    "adapted": Subject(
        tuned.tuned(model, texts(), "classify", "gpt2", "bpe", lora=2, changes={"objective.task.delimiters": ["<a>", "<b>", "<c>"]}),
        (*tuned.HEAD, *tuned.BESIDE), 3,
    ),
    "tagged": Subject(tuned.tuned(model, texts(), "tag", "bert", "wordpiece"), tuned.HEAD[2:], 1),
    "answered": Subject(tuned.tuned(model, texts(), "answer", "bert", "wordpiece"), tuned.HEAD[2:], 1),
    "talked": Subject(
        tuned.tuned(model, texts(), "chat", "llama", "spm-bpe", lora=2, settings={"template": "chatml"}), tuned.TALK, 3
    ),
    "task rows": Subject(tuned.of_tasks(model, texts()), tuned.TASKS, 5),
    "run": Subject(_run("gpt2"), (*RUN, *SAY[:1], *EMBED, *CONVERT, START), 5),
    "stopped": Subject(_run("gpt2", stop=3), (*RUN[3:], *GO_ON, *MIDWAY, SAYS), 5),
    "sharded": Subject(_run("bert", stop=3, shards=True), (*RUN[3:6], *GO_ON, *MIDWAY, FILLS), 4),
}  # fmt: skip
