"""Texts that go on: `generate` continues prompts, or answers them."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from stemma.decoding import beams, blanks, habits
from stemma.decoding import rules as wanted
from stemma.decoding.choose import Choice
from stemma.decoding.habits import Early
from stemma.decoding.rules import Rules
from stemma.decoding.session import answers, begin, check_model, generates, language_of, written
from stemma.errors import CheckpointError, UsageError
from stemma.nn.model import Model
from stemma.nn.parts import Prefix

Stream = Callable[[int, str], None]


@dataclass
class Result:
    """A continuation: its new token ids, their text (None without a tokenizer), the log-probability that the model
    gave each (before any temperature), and why it ended: `"eos"`, `"stop"` or `"length"`."""

    ids: list[int] = field(default_factory=list)
    text: str | None = None
    logprobs: list[float] = field(default_factory=list)
    reason: str = "length"


@torch.inference_mode()
def generate(
    model: Model,
    prompts: str | Sequence[str | Sequence[int]],
    *,
    max_new_tokens: int | None = None,
    min_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    no_repeat_ngram_size: int | None = None,
    num_beams: int | None = None,
    length_penalty: float | None = None,
    early_stopping: Early | None = None,
    forced_bos_token_id: int | str | None = None,
    forced_eos_token_id: int | str | None = None,
    decoder_start_token_id: int | str | None = None,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    ignore_eos: bool = False,
    language: str | int | None = None,
    stream: Stream | None = None,
) -> list[Result]:
    """Continue every prompt by at most `max_new_tokens` tokens; one result a prompt, in order.

    `prompts` are texts or lists of token ids, of any lengths. `stop`: strings that end a text (and are cut off).
    `language`: what the prompts are written in, for a model with a table of languages (a name or a number of it).
    `stream(row, piece)` is called with new text as it comes. `num_beams` above 1 searches instead of drawing. A row's
    result depends on the prompt, the options and `seed`, not on the other rows. Raises UsageError for what cannot be.

    Options that are left out (None) are as the checkpoint's generation_config.json has them, else: greedy
    (`temperature` 0), nothing penalised, one beam, at most 32 new tokens. What is read there: do_sample with
    temperature, top_k, top_p and min_p; num_beams, length_penalty and early_stopping; repetition_penalty and
    no_repeat_ngram_size; min_new_tokens or min_length, max_new_tokens or (of an encoder-decoder) max_length; the tokens
    that begin and end a text (`forced_bos_token_id`, of mBART-50 the language; `forced_eos_token_id`,
    `decoder_start_token_id`, eos_token_id); and what never comes (suppress_tokens, begin_suppress_tokens,
    bad_words_ids). A warning names what is not followed. 0 turns an option off. Tokens may be given by their ids or
    their names. `ignore_eos`: a text goes on past its end, to the full length.
    """
    check_model(model)
    if not generates(model):
        if model.lm is None:
            raise UsageError("this model has no language-model head, so it cannot continue a text")
        raise UsageError("an encoder cannot continue a text; use stemma.fill (or `stemma fill`) with this model")
    rules = wanted.rules(
        model,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        no_repeat_ngram_size=no_repeat_ngram_size,
        forced_bos_token_id=forced_bos_token_id,
        forced_eos_token_id=forced_eos_token_id,
        ignore_eos=ignore_eos,
    )
    if decoder_start_token_id is not None and model.encoder is None:
        raise UsageError("decoder_start_token_id is for an encoder-decoder; a decoder goes on from its prompt")
    choice, width = habits.search(
        model,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        num_beams=num_beams,
    )
    habits.told_unread(model)
    stops = [stop] if isinstance(stop, str) else list(stop)
    if "" in stops:
        raise UsageError("a stop string must not be empty: every text ends with nothing")
    if stops and model.tokenizer is None:
        raise UsageError("stop strings need a tokenizer, and this model came without one")
    rows = [prompts] if isinstance(prompts, str) else list(prompts)
    if not rows:
        return []
    encoded = [_encode(model, p) for p in rows]
    ends = () if ignore_eos else habits.ends(model)
    spoken_here = language_of(model, language)
    with evaluating(model):
        if width == 1:
            results = _draw(
                model, encoded, choice, rules, ends, stops, seed, stream, spoken_here, decoder_start_token_id
            )
        elif choice.temperature > 0 or stream is not None or stops:
            whose = f"; the checkpoint asks for {width} beams: num_beams=1 does without" if num_beams is None else ""
            raise UsageError(
                f"beam search (num_beams > 1) goes with neither temperature, stop strings nor streaming{whose}"
            )
        else:
            found = beams.search(
                model,
                encoded,
                width=width,
                rules=rules,
                ranking=wanted.beams(model, length_penalty, early_stopping),
                repetition_penalty=choice.repetition_penalty,
                ends=ends,
                language=spoken_here,
                start=decoder_start_token_id,
            )
            results = [Result(b.ids, None, b.logprobs, "eos" if b.ids[-1] in ends else "length") for b in found]
    for prompt, result in zip(encoded, results, strict=True):
        if result.text is None and model.tokenizer is not None:
            result.text = Writer(model, prompt).decode(result.ids)
    return results


@contextlib.contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """The model without its dropout, and afterwards in the mode that it was in."""
    mode = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(mode)


def _encode(model: Model, prompt: str | Sequence[int]) -> list[int]:
    if not isinstance(prompt, str):
        try:
            return [operator.index(token) for token in prompt]
        except TypeError:
            raise UsageError("prompts are texts or lists of whole token ids; one prompt is [[1, 2, 3]]") from None
    if model.tokenizer is None:
        raise CheckpointError(
            "a text needs a tokenizer, and this checkpoint came without one: put its tokenizer.json beside config.json"
        )
    if isinstance(model.arch.mask, Prefix):
        return blanks.prompt(model, prompt)
    # a query stream goes on from the end of a text, which has no special tokens behind it
    return model.tokenizer.encode(prompt, add_special=model.arch.streams is None)


def _draw(
    model: Model,
    prompts: list[list[int]],
    choice: Choice,
    rules: Rules,
    ends: Sequence[int],
    stops: list[str],
    seed: int,
    stream: Stream | None,
    language: int | None,
    start: int | str | None,
) -> list[Result]:
    session = begin(model, prompts, rules.length, language, start)
    results = [Result() for _ in prompts]
    seen = [written(model, p, start) for p in prompts]
    generators = [torch.Generator().manual_seed(seed) for _ in prompts]
    texts = [Writer(model, p, stops) for p in prompts] if stops or stream is not None else []
    open_ = list(range(len(prompts)))
    for step in range(rules.length):
        held = [seen[i] for i in open_]
        scores = choice.scores(rules.apply(choice.penalised(session.logits, held), held, step, ends))
        tokens = choice.draw(scores, [generators[i] for i in open_])
        logprobs = session.logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0].tolist()
        stay = []
        for at, (i, token, logprob) in enumerate(zip(open_, tokens.tolist(), logprobs, strict=True)):
            results[i].ids.append(token)
            results[i].logprobs.append(logprob)
            seen[i].append(token)
            ended = token in ends
            if ended:
                results[i].reason = "eos"
            if texts:
                piece, stopped = texts[i].add(results[i].ids, ended or step == rules.length - 1)
                if stopped:
                    results[i].reason, ended = "stop", True
                if piece and stream is not None:
                    stream(i, piece)
            if not ended:
                stay.append(at)
        if not stay or step == rules.length - 1:
            break
        if len(stay) < len(open_):
            rows = torch.tensor(stay, device=tokens.device)
            session.pick(rows)
            tokens = tokens[rows]
            open_ = [open_[at] for at in stay]
        session.step(tokens)
    for i, text in enumerate(texts):
        results[i].text = text.text
    return results


CONTEXT = 4  # tokens of the prompt that are decoded with what follows them


class Writer:
    """Text of growing token ids, handed out piece by piece: whole characters only, and nothing that may yet turn out
    to be the beginning of a stop string.

    A continuation is decoded after the end of its prompt: SentencePiece drops the space before the first token of a
    text, and here it is not the first."""

    def __init__(self, model: Model, prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        if model.tokenizer is None:
            raise UsageError("streaming needs a tokenizer, and this model came without one")
        self.tokenizer, self.stops = model.tokenizer, stops
        self.before = [] if answers(model) else list(prompt[-CONTEXT:])
        self.skip = len(self.tokenizer.decode(self.before))
        self.text = ""
        self.given = 0

    def decode(self, ids: Sequence[int]) -> str:
        """The text of new ids."""
        return self.tokenizer.decode([*self.before, *ids])[self.skip :]

    def add(self, ids: list[int], last: bool) -> tuple[str, bool]:
        """The text that is new and certain, and whether a stop string has ended it."""
        text = self.decode(ids)
        cut = min((at for s in self.stops if (at := text.find(s)) >= 0), default=-1)
        if cut >= 0:
            self.text = text[:cut]
            piece, self.given = self.text[self.given :], cut
            return piece, True
        self.text = text
        sure = len(text) if last else len(text) - self._doubtful(text)
        piece = text[self.given : sure]
        self.given = max(self.given, sure)
        return piece, False

    def _doubtful(self, text: str) -> int:
        whole = text.rstrip("\ufffd")  # what is broken may yet become part of a stop string too
        held = [n for s in self.stops for n in range(1, len(s)) if whole.endswith(s[:n])]
        return len(text) - len(whole) + max([0, *held])
