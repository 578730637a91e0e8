"""A model of ours in EleutherAI's harness (`lm_eval`): `stemma lm-eval run --model stemma --model_args path=MODEL ...`.

Prompts are tokenised, cut and scored as the harness does for models of transformers, so that scores can be compared.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

import stemma
from stemma.conversations import Conversation, Turn, Writer, writer
from stemma.decoding import SamplingParams, generate, score
from stemma.errors import UsageError
from stemma.nn.model import Model
from stemma.nn.parts import Prefix

LONGEST = 256  # tokens that are written where a task names no number


@register_model("stemma")
class StemmaLM(TemplateLM):
    """A model that writes, of any structure. `path`: a folder, a run, a GGUF file or a hub id; `adapter`: folders of
    adapters, between semicolons; `quantize`, `dtype`: as of `stemma.load`. Raises UsageError for what cannot be."""

    def __init__(
        self,
        path: str | None = None,
        pretrained: str | None = None,
        dtype: str = "float32",
        device: str | None = None,
        adapter: str = "",
        quantize: str | None = None,
        batch_size: int | str = 8,
        max_length: int | None = None,
        template: str | None = None,
        max_batch_size: int | None = None,  # the harness names it, for batches that it sizes itself
    ) -> None:
        super().__init__()
        path = path or pretrained
        if path is None:
            raise UsageError("--model_args names no model: give path=MODEL")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UsageError(f"--batch_size {batch_size!r}: give a whole number of at least 1")
        if device is None or not torch.cuda.is_available():  # the harness asks for a GPU where nobody names a device
            device = "cpu"
        adapters = [folder for folder in adapter.split(";") if folder]
        self.model: Model = stemma.load(path, device=device, dtype=dtype, adapter=adapters, quantize=quantize)
        if self.model.tokenizer is None:
            raise UsageError(f"{path} has no tokenizer, and the harness asks with texts")
        if self.model.decoder is None or isinstance(self.model.arch.mask, Prefix):
            raise UsageError(f"{path} does not go on from a text from left to right, and the harness asks for that")
        self.path, self.template = path, template
        self.batch = int(batch_size)
        self.max_length = max_length or self.model.dims.context
        self.backend = "seq2seq" if self.model.arch.structure == "encoder-decoder" else "causal"
        self._device = self.model.device

    # ------------------------------------------------------------ tokens

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        found = self.model.tokenizer.eos_id
        if found is None:
            raise UsageError(f"{self.path} has no token that ends a text, and the harness asks for one")
        return int(found)

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context stands behind."""
        first = self.model.tokenizer.bos_id
        return self.eot_token_id if first is None else int(first)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, with the tokenizer's own special tokens unless it begins with one already."""
        tokenizer = self.model.tokenizer
        first = tokenizer.decode([self.prefix_token_id], skip_special=False)
        special = (not string.startswith(first)) if add_special_tokens is None else add_special_tokens
        return list(tokenizer.encode(string, add_special=special, allow_special=True))

    # ------------------------------------------------------------ what the harness asks

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether it is the likeliest one."""
        groups: dict[tuple[int, ...], list[int]] = {}  # the requests of each context, which is read once
        told = [continuation[-self.max_length :] for _, _, continuation in requests]
        for i, (_texts, context, continuation) in enumerate(requests):
            room = self.max_length - len(continuation) + (self.backend == "causal")
            groups.setdefault(tuple(context[-room:]), []).append(i)
        order = sorted(groups, key=lambda context: (-len(context), context))
        found: dict[int, tuple[float, bool]] = {}
        for at in tqdm(range(0, len(order), self.batch), disable=disable_tqdm):
            these = order[at : at + self.batch]
            scored = score(self.model, these, [[told[i] for i in groups[c]] for c in these], batch=self.batch)
            for shared, own in zip(these, scored, strict=True):
                found |= {i: (one.logprob, one.greedy) for i, one in zip(groups[shared], own, strict=True)}
        for i, request in enumerate(requests):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], found[i])
        return [found[i] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of whole texts, in windows that do not overlap."""
        totals = []
        for request in requests:
            (text,) = request.args
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            asked = [(None, *utils.make_disjoint_window(window)) for window in windows]
            totals.append(sum(total for total, _ in self._loglikelihood_tokens(asked)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts up to the first of the strings that a task ends at."""
        end = self.model.tokenizer.decode([self.eot_token_id], skip_special=False)
        texts = []
        for first in range(0, len(requests), self.batch):
            these = requests[first : first + self.batch]
            asked = [self._asked(request.args[0], request.args[1], end) for request in these]
            prompts, params = [prompt for prompt, _, _ in asked], [options for _, options, _ in asked]
            done = generate(self.model, prompts, params)
            for request, result, (_, _, until) in zip(these, done, asked, strict=True):
                alone = self.model.tokenizer.decode(result.ids)  # as the harness reads it: without what went before
                text = postprocess_generated_text(generation=alone, stop=until, think_end_token=None)
                self.cache_hook.add_partial("generate_until", request.args, text)
                texts.append(text)
        return texts

    def _asked(self, context: str, given: dict[str, Any], end: str) -> tuple[list[int], Any, list[str]]:
        """A prompt's ids, its options, and the strings that it ends at."""
        options = normalize_gen_kwargs(dict(given), LONGEST)
        until = handle_stop_sequences(options.pop("until", None), eos=end)
        new = options.pop("max_gen_toks")
        room = self.max_length - new if self.backend == "causal" else self.max_length
        if room < 1:
            raise UsageError(f"{new} new tokens leave no room for a prompt in {self.max_length}: lower max_gen_toks")
        options.pop("use_cache", None)  # of transformers alone
        temperature = options.pop("temperature", 1.0)
        params = SamplingParams(
            max_new_tokens=new,
            temperature=temperature if options.pop("do_sample", False) else 0.0,
            stop=[text for text in until if text != end],
        )
        return self.tok_encode(context)[-room:], params.changed(options), until

    # ------------------------------------------------------------ conversations

    @property
    def tokenizer_name(self) -> str:
        """What caches of the harness know the model by."""
        return f"{self.path}|{self.template or ''}"

    @functools.cached_property
    def writer(self) -> Writer:
        """The chat template."""
        return writer(self.model.tokenizer, self.template)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's name, for the harness's records."""
        return f"{self.template or 'its own'} of {self.path}" if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as one text."""
        turns = tuple(Turn(message["role"], message["content"]) for message in chat_history)
        if add_generation_prompt:
            return self.writer.prompt(turns).text
        return self.writer.write(Conversation(turns)).text
