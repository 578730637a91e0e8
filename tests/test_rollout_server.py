"""Rollouts from a server: the same run as without one, what vLLM is told, and what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import serving
import stemma
from stemma.alignment.rollout_server import RolloutServer, ServerError
from stemma.alignment.rollouts import EncodedPrompt, Sampling, sample
from stemma.decoding import generate
from stemma.errors import ResourceError, RewardError, UsageError
from stemma.formats import peft
from stemma.train import read_metrics
from test_ppo import asked, home  # noqa: F401

NAMES = ("reward", "length", "kl", "loss", "engine_gap")


def same(run: Path, other: Path) -> None:
    """The same answers and numbers, up to the rounding of prompts that are read in other batches."""
    assert (run / "samples.jsonl").read_text() == (other / "samples.jsonl").read_text()
    steps = [[row for row in read_metrics(one) if "reward_std" in row] for one in (run, other)]
    assert len(steps[0]) == len(steps[1]) == 3
    for one, two in zip(*steps, strict=True):
        assert [one[name] for name in NAMES] == pytest.approx([two[name] for name in NAMES], abs=1e-4)
        assert one["engine_gap"] < 1e-5


@pytest.fixture
def alone(home: Path, tmp_path: Path) -> Path:  # noqa: F811
    stemma.align("ppo", out=tmp_path / "alone", quiet=True, **asked(home))
    return tmp_path / "alone"


def test_a_run_whose_answers_come_from_a_server(
    home: Path,  # noqa: F811
    tmp_path: Path,
    alone: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """stemma serve samples from the weights that were pushed: the run is the one that samples for itself,
    and one that was stopped goes on likewise."""
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with serving.port(serving.server(admin=True, keys=("k",))) as url:
        how = asked(home, **{"objective.server": f"{url}/v1#policy", "train.save_every": 1})

        def stop(record: dict[str, Any]) -> None:
            if record["step"] == 2:
                os.kill(os.getpid(), signal.SIGINT)

        run = stemma.align("ppo", out=tmp_path / "run", on_step=stop, quiet=True, **how)
        assert not run.finished
        stemma.align("ppo", out=tmp_path / "run", resume=True, quiet=True, **how)
    same(tmp_path / "run", alone)


class Fake(BaseHTTPRequestHandler):
    """The routes of vLLM that are used, over a folder of weights. `deaf`: it reloads nothing."""

    folder: Path
    deaf = loaded = False
    model: Any = None
    calls: list[str]

    def do_GET(self) -> None:
        name = "policy" if type(self).loaded else "base"
        self._send({"object": "list", "data": [{"id": name, "object": "model", "owned_by": "vllm"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.calls.append(self.path)
        own = type(self)
        if self.path == "/v1/completions":
            assert body["return_token_ids"] and body["temperature"] == 1.0
            drawn = Sampling(body["n"], body["max_tokens"], stops=tuple(body.get("stop") or ())).params(body["seed"])
            (found,) = generate(own.model, [body["prompt"]], [drawn])
            choices = [
                {
                    "index": i, "text": one.text, "token_ids": list(one.ids), "prompt_token_ids": body["prompt"],
                    "logprobs": {"token_logprobs": list(one.logprobs)},
                    "finish_reason": "length" if one.reason == "length" else "stop",
                }
                for i, one in enumerate(found.choices)
            ]  # fmt: skip
            return self._send({"choices": choices})
        if self.path.endswith("lora_adapter"):
            assert body["lora_name"] == "policy" and own.loaded == self.path.endswith("unload_lora_adapter")
            own.loaded = not own.loaded
            if own.loaded:
                own.model = peft.attach(stemma.load(self.folder), body["lora_path"])
            return self._send({})
        if self.path == "/collective_rpc":
            assert body == {"method": "reload_weights"}
            if own.model is None or not own.deaf:
                own.model = stemma.load(self.folder)
            return self._send({"results": [None]})
        return self._send(None)  # /reset_prefix_cache has no body

    def _send(self, found: Any) -> None:
        raw = b"" if found is None else json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def vllm(folder: Path, deaf: bool = False) -> Iterator[tuple[str, list[str]]]:
    handler = type("Handler", (Fake,), {"folder": folder, "deaf": deaf, "model": None, "calls": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1#policy", handler.calls  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()


def test_vllm_is_told_of_new_weights(home: Path, tmp_path: Path, alone: Path) -> None:  # noqa: F811
    with vllm(tmp_path / "served") as (url, calls):
        how = asked(home, **{"objective.server": url, "objective.served": str(tmp_path / "served")})
        stemma.align("ppo", out=tmp_path / "run", quiet=True, **how)
    same(tmp_path / "run", alone)
    pushes = [i for i, path in enumerate(calls) if path == "/collective_rpc"]
    assert len(pushes) >= 3 and all(calls[i + 1] == "/reset_prefix_cache" for i in pushes)


def test_a_server_with_other_weights_is_noticed(home: Path, tmp_path: Path) -> None:  # noqa: F811
    with vllm(tmp_path / "served", deaf=True) as (url, _):
        changes = {"objective.server": url, "objective.served": str(tmp_path / "served"), "recipe.lr": 0.5}
        with pytest.raises(RewardError, match=r"nats a token apart, more than objective\.gates\.gap=0\.5"):
            stemma.align("ppo", out=tmp_path / "run", quiet=True, **asked(home, **changes))


def test_what_does_not_fit(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("stemma.instruct.writers.TRIES", 1)
    for change, kind, why in (
        ({"objective.server": "nowhere"}, UsageError, "objective.server=nowhere is no address"),
        ({"objective.server": "http://127.0.0.1:9/v1"}, UsageError, "name one behind a #"),
        ({"objective.server": "http://127.0.0.1:9/v1#policy"}, ResourceError, "127.0.0.1:9/v1/models does not answer"),
        ({"objective.server": "http://127.0.0.1:9/v1#p", "objective.temperature": 0.7}, UsageError, "temperature 1"),
    ):
        with pytest.raises(kind, match=why):
            stemma.align("ppo", out=tmp_path / "run", quiet=True, **asked(home, **change))


def test_an_adapter_is_pushed_alone(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Of a policy with LoRA, to `stemma serve` and to vLLM: the run is the one that samples for itself."""
    how = asked(home)
    stemma.align("ppo", out=tmp_path / "alone", lora=2, quiet=True, **how)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with serving.port(serving.server(admin=True, keys=("k",))) as url:
        how = asked(home, **{"objective.server": f"{url}/v1#policy"})
        stemma.align("ppo", out=tmp_path / "run", lora=2, quiet=True, **how)
    same(tmp_path / "run", tmp_path / "alone")
    written = {file.name for file in (tmp_path / "run" / "served").iterdir()}
    assert "adapter_model.safetensors" in written and "model.safetensors" not in written
    with vllm(Path(how["start"])) as (url, calls):
        how = asked(home, **{"objective.server": url})
        stemma.align("ppo", out=tmp_path / "vllm", lora=2, quiet=True, **how)
    same(tmp_path / "vllm", tmp_path / "alone")
    told = [path for path in calls if path != "/v1/completions"]
    once = ["/v1/unload_lora_adapter", "/v1/load_lora_adapter", "/reset_prefix_cache"]
    assert len(told) >= 9 and told == once[1:] + once * ((len(told) - 2) // 3)


def test_a_server_that_goes_away_leaves_a_checkpoint(
    home: Path,  # noqa: F811
    tmp_path: Path,
    alone: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stemma.instruct.writers.TRIES", 1)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with serving.port(serving.server(admin=True, keys=("k",))) as url:
        how = asked(home, **{"objective.server": f"{url}/v1#policy", "train.save_every": 100})

        def lock(record: dict[str, Any]) -> None:
            if record["step"] == 2:
                monkeypatch.setenv("OPENAI_API_KEY", "other")

        with pytest.raises(ServerError, match="does not answer: 401"):
            stemma.align("ppo", out=tmp_path / "run", on_step=lock, quiet=True, **how)
        assert [place.name for place in (tmp_path / "run" / "checkpoints").iterdir()] != []
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        stemma.align("ppo", out=tmp_path / "run", resume=True, quiet=True, **how)
    same(tmp_path / "run", alone)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"token_ids": None}, "answered without token_ids"),
        ({"text": "something else"}, "it has another one"),
        ({"finish_reason": "abort"}, r"ended an answer after \d of 6 tokens \(abort\)"),
        ({"finish_reason": "length", "token_ids": [5], "logprobs": {"token_logprobs": [-1.0]}}, "context is shorter"),
    ],
)
def test_answers_that_cannot_be_learnt_from(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    model = serving.decoder()
    made = RolloutServer("http://127.0.0.1:9/v1#policy", tmp_path)
    made.tokenizer = model.tokenizer
    (one,) = sample(model, [EncodedPrompt((5, 9, 11))], Sampling(1, 6), [3])
    choice: dict[str, Any] = {
        "index": 0, "text": one.text, "token_ids": list(one.ids), "logprobs": {"token_logprobs": list(one.logprobs)},
        "finish_reason": "stop" if one.finished else "length",
    }  # fmt: skip
    answers: list[Any] = [choice, choice | change]
    made.api.post = lambda path, body: {"choices": [answers.pop(0)]}  # type: ignore[method-assign]
    assert [found.ids for found in made.sample([one.prompt], Sampling(1, 6), [3])] == [one.ids]
    with pytest.raises(ServerError, match=why):
        made.sample([one.prompt], Sampling(1, 6), [3])


def test_token_ids_of_completions() -> None:
    with serving.client(serving.server()) as client:
        body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 4, "logprobs": 0, "return_token_ids": True, "n": 2}
        choices = client.post("/v1/completions", json=body).json()["choices"]
        assert all(len(c["token_ids"]) == len(c["logprobs"]["token_logprobs"]) > 0 for c in choices)
        wrong = client.post("/v1/completions", json=body | {"stream": True})
        assert wrong.status_code == 400 and "return_token_ids" in wrong.json()["error"]["message"]
        assert (
            "token_ids"
            not in client.post("/v1/completions", json={"model": "tiny", "prompt": "a"}).json()["choices"][0]
        )
