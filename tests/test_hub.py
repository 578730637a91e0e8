"""Checkpoints by hub id, against a small server here that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

import stemma
from oracle import saved
from stemma.errors import CheckpointError, ResourceError, UsageError
from stemma.formats import hub

MAIN, OLD = "a" * 40, "b" * 40


class Hub(ThreadingHTTPServer):
    """Repositories as `{id: {commit: folder}}`, with `refs` from names to commits; `asked` logs every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repos: dict[str, dict[str, Path]] = {}
        self.refs: dict[str, str] = {"main": MAIN}
        self.asked: list[str] = []
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def fetched(self) -> list[str]:
        """The files whose content was asked for, by name."""
        return [line.split("/")[-1] for line in self.asked if line.startswith("GET") and "/resolve/" in line]


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.reply(status, b"{}", X_Error_Code=code, X_Error_Message=code)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server
        path = unquote(urlsplit(self.path).path)
        hub.asked.append(f"{self.command} {path}")
        words = path.strip("/").split("/")
        api = words[:2] == ["api", "models"]
        words = words[2:] if api else words
        repo, rest = "/".join(words[:2]), words[2:]
        if repo == "org/gated" and not api:
            return self.refuse(403, "GatedRepo")
        if repo == "org/ill":
            return self.reply(503)
        if repo == "org/private" or repo not in hub.repos:
            return self.refuse(401 if repo == "org/private" else 404, "RepoNotFound")
        commits = hub.repos[repo]
        revision = rest[1] if len(rest) > 1 else "main"
        commit = hub.refs.get(revision, revision)
        if commit not in commits:
            return self.refuse(404, "RevisionNotFound")
        folder = commits[commit]
        files = sorted(f for f in folder.rglob("*") if f.is_file())
        if api and (not rest or rest[0] == "revision"):
            siblings = [{"rfilename": f.relative_to(folder).as_posix()} for f in files]
            return self.reply(
                200, json.dumps({"id": repo, "modelId": repo, "sha": commit, "siblings": siblings}).encode()
            )
        if api and rest[0] == "tree":
            assert parse_qs(urlsplit(self.path).query).get("recursive", ["true"])[0].lower() == "true"
            tree = [
                {"type": "file", "path": f.relative_to(folder).as_posix(), "size": f.stat().st_size, "oid": digest(f)}
                for f in files
            ]
            return self.reply(200, json.dumps(tree).encode())
        if not api and rest[0] == "resolve":
            file = folder / "/".join(rest[2:])
            if not file.is_file():
                return self.refuse(404, "EntryNotFound")
            return self.reply(200, file.read_bytes(), ETag=f'"{digest(file)}"', X_Repo_Commit=commit)
        return self.reply(404)


def digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def server() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.stop()


SCRIPT = """
import json, sys, time
import stemma
from stemma.errors import StemmaError
out = []
for repo, revision in json.loads(sys.argv[1]):
    start = time.perf_counter()
    try:
        m = stemma.load(repo, revision=revision)
        found = {"name": m.family.name, "sum": sum(p.double().sum().item() for p in m.parameters())}
    except StemmaError as error:
        found = {"error": type(error).__name__, "text": str(error)}
    out.append(found | {"seconds": time.perf_counter() - start})
print(json.dumps(out))
"""


def load(url: str, home: Path, *wanted: tuple[str, str | None], **env: str) -> list[dict[str, Any]]:
    """Load in a fresh process, as a user with that endpoint and cache."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    keep |= {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-c", SCRIPT, json.dumps(wanted)]
    done = subprocess.run(command, env=keep | env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def total(folder: Path) -> float:
    return sum(p.double().sum().item() for p in stemma.load(folder).parameters())


def clutter(folder: Path) -> None:
    """What repositories hold besides."""
    for name in (
        "tf_model.h5",
        "flax_model.msgpack",
        "rust_model.ot",
        "README.md",
        "consolidated.safetensors",
        "model.fp16.safetensors",
    ):
        (folder / name).write_bytes(b"x" * 100)
    for name in ("onnx/model.onnx", "onnx/config.json", "original/params.json", "coreml/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x" * 100)


def test_downloads_what_is_needed_and_then_uses_the_cache(tmp_path: Path, server: Hub) -> None:
    main, old = tmp_path / "main", tmp_path / "old"
    saved("gpt2", main, seed=1)
    saved("gpt2", old, seed=2)
    (main / "pytorch_model.bin").write_bytes(b"never read")
    clutter(main)
    server.repos["org/tiny-gpt2"] = {MAIN: main, OLD: old}
    server.refs["v1"] = OLD
    home, repo = tmp_path / "home", "org/tiny-gpt2"
    first, again, tag, commit = load(server.url, home, (repo, None), (repo, None), (repo, "v1"), (repo, OLD))
    assert first["name"] == "gpt2" and first["sum"] == again["sum"] == total(main)
    assert tag["sum"] == commit["sum"] == total(old) != first["sum"]
    assert set(server.fetched()) == {"config.json", "generation_config.json", "model.safetensors"}
    assert server.fetched().count("model.safetensors") == 2  # once of each commit
    server.stop()
    # with the server down, and with the network declared off, what is in the cache still loads
    gone, tag, down = load(server.url, home, (repo, None), (repo, "v1"), ("org/other", None))
    assert gone["sum"] == first["sum"] and tag["sum"] == total(old)
    assert down["error"] == "ResourceError" and server.url in down["text"] and "'org/other'" in down["text"]
    offline, tag, none = load(server.url, home, (repo, None), (repo, "v1"), ("org/other", None), HF_HUB_OFFLINE="1")
    assert offline["sum"] == first["sum"] and tag["sum"] == total(old)
    assert none["error"] == "ResourceError" and "HF_HUB_OFFLINE" in none["text"] and "org/other" in none["text"]
    for answer in (down, none):
        assert "\n" not in answer["text"] and answer["seconds"] < 8, answer


def test_shards_and_bin_files(tmp_path: Path, server: Hub) -> None:
    saved("llama", tmp_path / "one")
    stemma.load(tmp_path / "one").save(tmp_path / "shards", shard_bytes=30_000)
    clutter(tmp_path / "shards")
    saved("bert-mlm", tmp_path / "bin")
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(tmp_path / "bin/model.safetensors"), tmp_path / "bin/pytorch_model.bin")
    expected = total(tmp_path / "bin")
    (tmp_path / "bin/model.safetensors").unlink()
    server.repos["org/shards"] = {MAIN: tmp_path / "shards"}
    server.repos["org/bin"] = {MAIN: tmp_path / "bin"}
    shards, single = load(server.url, tmp_path / "home", ("org/shards", None), ("org/bin", None))
    assert shards["sum"] == total(tmp_path / "one") and single["sum"] == expected
    assert len([f for f in server.fetched() if f.startswith("model-0")]) > 2
    assert "pytorch_model.bin" in server.fetched()
    assert not {"consolidated.safetensors", "model.fp16.safetensors", "tf_model.h5"} & set(server.fetched())


def test_what_cannot_be_had_is_said_in_one_sentence_and_quickly(tmp_path: Path, server: Hub) -> None:
    saved("gpt2", tmp_path / "m")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/tf_model.h5").write_bytes(b"x")
    (tmp_path / "h5").mkdir()
    (tmp_path / "h5/config.json").write_text((tmp_path / "m/config.json").read_text())
    (tmp_path / "h5/tf_model.h5").write_bytes(b"x")
    for name in ("m", "empty", "h5", "gated", "private"):
        server.repos[f"org/{name}"] = {MAIN: tmp_path / ("m" if name in ("gated", "private") else name)}
    wanted = [("org/nothing", None), ("org/private", None), ("org/m", "v9"), ("org/gated", None), ("org/empty", None), ("org/h5", None), ("a/..b", None), ("org/ill", None)]  # fmt: skip
    found = load(server.url, tmp_path / "home", *wanted)
    for answer in found:
        assert "\n" not in answer["text"] and answer["seconds"] < 8, answer
    nothing, private, revision, gated, empty, h5, invalid, ill = found
    for answer, word in [
        (nothing, "'org/nothing'"),
        (private, "'org/private'"),
        (revision, "no revision 'v9'"),
        (gated, "gated"),
        (invalid, "'a/..b'"),
    ]:
        assert answer["error"] == "UsageError" and word in answer["text"], answer
    assert empty["error"] == "CheckpointError" and "config.json" in empty["text"]
    assert h5["error"] == "CheckpointError" and "weights" in h5["text"]
    assert server.url in nothing["text"]
    assert ill["error"] == "ResourceError" and server.url in ill["text"] and "503" in ill["text"]


def test_which_files_are_chosen() -> None:
    small = ["config.json", "tokenizer.json", "spiece.model", "merges.txt", "chat_template.jinja"]
    rest = ["README.md", "tf_model.h5", "onnx/config.json", "consolidated.safetensors"]
    one, index = ["model.safetensors"], ["model.safetensors.index.json"]
    parts = [f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    bins = [f"pytorch_model-{i:05d}-of-00002.bin" for i in (1, 2)]
    bin_index = ["pytorch_model.bin.index.json"]
    old = ["pytorch_model.bin"]
    for weights, chosen in [
        (one, one),
        (one + index + parts + old, one),
        (index + parts + old, index + parts),
        (old + bin_index + bins, old),
        (bin_index + bins, bin_index + bins),
        (parts + old, old),
    ]:
        assert sorted(hub.choose("org/x", small + rest + weights)) == sorted(small + chosen)
    with pytest.raises(CheckpointError, match="no weights"):
        hub.choose("org/x", small + rest)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        hub.choose("org/x", old)


def test_a_bad_name_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = time.perf_counter()
    for bad in ("gpt2", "a/b/c", "a b/c", ""):
        with pytest.raises((UsageError, CheckpointError)):
            stemma.load(bad)
    with pytest.raises(ResourceError, match="HF_HUB_OFFLINE"):  # set for all tests
        stemma.load("org/none")
    assert time.perf_counter() - start < 5


def test_half_a_download_in_the_cache_is_not_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--org--x"
    saved("gpt2", repo / "snapshots" / MAIN)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(MAIN)
    assert stemma.load("org/x").family.name == "gpt2"
    (repo / "snapshots" / MAIN / "model.safetensors").unlink()
    with pytest.raises(ResourceError, match="only a part"):
        stemma.load("org/x")
