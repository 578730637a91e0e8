"""Answers from a server that speaks OpenAI's `/completions`: `stemma serve --admin`, or vLLM.

Before a step samples, the weights are written as safetensors to a folder that the server can read, and the server is
told to load them. vLLM is told by `/collective_rpc` (`reload_weights`; it must have been started on that folder, with
VLLM_SERVER_DEV_MODE=1) and then to forget the prompts that it has read (`/reset_prefix_cache`); `stemma serve` by its
`/admin/models`. Of a policy with an adapter that alone is written; vLLM loads it by `/v1/load_lora_adapter`, `stemma
serve` beside the weights that the run began from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stemma import formats
from stemma.alignment.rollouts import EncodedPrompt, Rollout, Sampling
from stemma.declare.alignment import Online
from stemma.decoding.sampling import choice_seed
from stemma.errors import ResourceError, RewardError, UsageError, brief
from stemma.instruct.writers import AddressWriter, address
from stemma.nn.model import Model

PARALLEL = 16  # requests at a time; the server makes batches of them
ADAPTER = "policy"  # what `stemma serve` calls the adapter beside its weights


class ServerError(RewardError, ResourceError):
    """A server gives no answers that can be learnt from. The run writes a checkpoint, and goes on from there once the
    server is mended."""

    exit_code = ResourceError.exit_code


class RolloutServer:
    """The server at `where` (URL#MODEL), and the `folder` that it loads weights from. `start`: what an adapter belongs
    to."""

    adapted = False  # whether the policy is an adapter
    tokenizer: Any = None  # of the policy

    def __init__(self, where: str, folder: Path, start: str = "") -> None:
        known = address(where)
        if known is None:
            raise UsageError(
                f"objective.server={where} is no address; give URL#MODEL, as in http://127.0.0.1:8000/v1#policy"
            )
        self.api, self.folder = known, folder.absolute()
        root = known.url.removesuffix("/v1")
        self.root = AddressWriter(root, known.model)
        self.start = str(Path(start).absolute()) if Path(start).exists() else start
        self._kind: str | None = None

    # ------------------------------------------------------------ weights

    def push(self, model: Model) -> None:
        """Have the server sample from the weights as they are now. Raises ServerError where it does not answer."""
        before, model.origin = model.origin, self.start if self.adapted else model.origin
        try:
            formats.save(model, self.folder, layout="peft" if self.adapted else None)
        finally:
            model.origin = before
        if not (self.folder / "tokenizer_config.json").exists():
            self.tokenizer.save(self.folder)
        with stopping():
            (self._reload if self.kind == "vllm" else self._replace)()

    @property
    def kind(self) -> str:
        """Which program the server is, by what it says of its models."""
        if self._kind is None:
            found = self.api.get("models")
            owners = {str(one.get("owned_by")) for one in found.get("data", ()) if isinstance(one, dict)}
            self._kind = "vllm" if "vllm" in owners else "stemma"
        return self._kind

    def _reload(self) -> None:
        if self.adapted:
            if self.api.model in {one.get("id") for one in self.api.get("models")["data"]}:
                self.api.post("unload_lora_adapter", {"lora_name": self.api.model})
            self.api.post("load_lora_adapter", {"lora_name": self.api.model, "lora_path": str(self.folder)})
        else:
            self.root.post("collective_rpc", {"method": "reload_weights"})
        self.root.post("reset_prefix_cache", {})

    def _replace(self) -> None:
        beside = {"adapters": {ADAPTER: str(self.folder)}} if self.adapted else {}
        where = self.start if self.adapted else str(self.folder)
        self.root.post("admin/models", {"model": where, "name": self.api.model, "replace": True} | beside)

    # ------------------------------------------------------------ answers

    def sample(self, prompts: Sequence[EncodedPrompt], how: Sampling, seeds: Sequence[int]) -> list[Rollout]:
        """As `rollouts.sample`, by the server's model. Raises ServerError where it does not answer as it should."""
        with stopping(), ThreadPoolExecutor(PARALLEL) as pool:
            found = pool.map(lambda pair: self._answers(pair[0], how, pair[1]), zip(prompts, seeds, strict=True))
            return [one for answers in found for one in answers]

    def _answers(self, prompt: EncodedPrompt, how: Sampling, seed: int) -> list[Rollout]:
        # everything that a generation_config.json beside the weights might set is said here
        beside = f":{ADAPTER}" if self.adapted and self.kind == "stemma" else ""
        asked = {
            "model": self.api.model + beside, "prompt": list(prompt.ids), "n": how.samples, "max_tokens": how.tokens,
            "temperature": how.temperature, "top_p": how.top_p, "top_k": how.top_k, "min_p": 0.0,
            "repetition_penalty": 1.0, "stop": list(how.stops) or None, "seed": seed, "logprobs": 0,
            "return_token_ids": True,
        }  # fmt: skip
        answer = self.api.post("completions", asked)
        try:
            choices = sorted(answer["choices"], key=lambda one: one["index"])
            found = [self._rollout(prompt, i, one, seed, how.tokens) for i, one in enumerate(choices)]
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            raise ResourceError(
                f"{self.api.url} answered without token_ids and their log-probabilities: {brief(answer)}; they are "
                "asked for by return_token_ids, which stemma serve and vLLM know"
            ) from None
        if len(found) != how.samples:
            raise ResourceError(
                f"{self.api.url} gave {len(found)} answers to a prompt, and {how.samples} were asked for"
            )
        return found

    def _rollout(self, prompt: EncodedPrompt, number: int, choice: dict[str, Any], seed: int, most: int) -> Rollout:
        ids, numbers = list(map(int, choice["token_ids"])), list(map(float, choice["logprobs"]["token_logprobs"]))
        if len(ids) != len(numbers) or not ids:
            raise ValueError("tokens and numbers differ")
        reason, text, whole = choice["finish_reason"], str(choice["text"]), self.tokenizer.decode(ids)
        if reason not in ("stop", "length") or (reason == "length" and len(ids) != most):
            raise ServerError(
                f"{self.api.url} ended an answer after {len(ids)} of {most} tokens ({reason}): its context is shorter "
                "than a prompt with its answer, or it was cut off"
            )
        if max(ids) >= self.tokenizer.vocab_size or not whole.strip().startswith(text.strip()):
            raise ServerError(
                f"{self.api.url} gave the text {brief(text)} for tokens that are {brief(whole)} to the policy's "
                "tokenizer: it has another one"
            )
        return Rollout(
            prompt, number, tuple(ids), tuple(numbers), tuple(numbers), reason == "stop", text,
            choice_seed(seed, number),
        )  # fmt: skip


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """A server that does not answer stops the run, with a checkpoint."""
    try:
        yield
    except RewardError:
        raise
    except ResourceError as error:
        raise ServerError(str(error)) from None


def of(spec: Online, run: Path | None, start: str = "") -> RolloutServer | None:
    """The server that an objective names; None for one that samples here. `start`: what the run begins from."""
    if not spec.server:
        return None
    if not spec.served and run is None:
        raise UsageError("objective.server needs a folder for the weights: give objective.served")
    return RolloutServer(spec.server, Path(spec.served) if spec.served else Path(str(run)) / "served", start)
