"""Texts with gaps: `fill` restores masked pieces or missing spans."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from stemma.decoding import blanks, generation_config, infill
from stemma.decoding.generation import generate
from stemma.decoding.inputs import check_model, evaluating, language_ids, language_of
from stemma.errors import UsageError
from stemma.nn.inputs import Inputs, StreamInputs
from stemma.nn.model import Model
from stemma.nn.parts import Prefix


@dataclass
class Guess:
    """One way to fill a mask: the token's text, its id and its probability."""

    text: str
    id: int
    probability: float


@dataclass
class Filled:
    """A text with its masks filled. For each mask: the best `guesses` (of an encoder), or the span that was written (by
    an encoder-decoder, or a decoder that fills blanks)."""

    text: str
    guesses: list[list[Guess]] = field(default_factory=list)
    spans: list[str] = field(default_factory=list)


MASK = "[MASK]"
SHORT_SPANS = "[NLU]"  # UL2's mode of few, short spans


@torch.inference_mode()
def fill(
    model: Model, text: str, *, top: int = 5, max_new_tokens: int = 64, language: str | int | None = None
) -> Filled:
    """Fill every `[MASK]` of a text (or the model's own mask token, or `<extra_id_N>`).

    An encoder predicts one token a mask. An encoder-decoder trained on spans and a decoder trained on blanks (GLM)
    write any number of tokens a mask, and so does a decoder that sees its prompt whole and knows sentinels (U-PaLM); a
    decoder trained to infill (Code LLaMA) fills one mask. `language` as for `generate`. Raises UsageError if there is
    no mask, or the model can do none of these.
    """
    check_model(model)
    if top < 1:
        raise UsageError(f"top must be at least 1, not {top}")
    if model.lm is None:
        raise UsageError("this model has no language-model head, so it cannot fill masks")
    if model.tokenizer is None:
        raise UsageError("fill needs a tokenizer, and this model came without one")
    with evaluating(model):
        if model.arch.structure == "encoder":
            return _fill_masks(model, text, top, language_of(model, language))
        if model.arch.structure == "encoder-decoder" and model.tokenizer.sentinels:
            return _fill_spans(model, text, max_new_tokens)
        if model.arch.structure == "decoder" and blanks.blank_tokens(model).blanks:
            return _fill_blanks(model, text, max_new_tokens)
        if isinstance(model.arch.mask, Prefix) and model.tokenizer.sentinels:
            return _fill_spans(model, text, max_new_tokens)
        if model.arch.structure == "decoder" and infill.infill_tokens(model) is not None:
            return _fill_middle(model, text, max_new_tokens)
    raise UsageError(f"this {model.arch.structure} cannot fill masks; use stemma.generate (or `stemma generate`)")


def _fill_masks(model: Model, text: str, top: int, language: int | None) -> Filled:
    tokenizer = model.tokenizer
    if tokenizer.mask_id is None:
        raise UsageError("this model's tokenizer has no mask token, so there is nothing to fill")
    ids = tokenizer.encode(_mark(text, MASK, lambda k: tokenizer.tokens([tokenizer.mask_id])[0]), allow_special=True)
    _check_ids(model, ids)
    at = [i for i, t in enumerate(ids) if t == tokenizer.mask_id]
    if not at:
        raise UsageError(f"the text has no {MASK} to fill")
    batch = torch.tensor([ids], device=model.device)
    if model.arch.streams is None:
        state = model.state(Inputs(batch, langs=language_ids(batch, language)))
        hidden = model.read(state)[0, at]
    else:  # queries at the places of the masks, which are hidden from all tokens
        unseen = torch.zeros(1, len(ids), len(ids), device=model.device)
        unseen[:, :, at] = 1
        places = torch.eye(len(ids), device=model.device)[None, at]
        hidden = model.encode(Inputs(batch, streams=StreamInputs(perm_mask=unseen, target_mapping=places)))[0]
    share = model.logits(hidden).float().softmax(-1)
    best = share.topk(min(top, share.shape[-1]))
    guesses = [
        [Guess(tokenizer.decode([i]).strip(), i, p) for i, p in zip(row.tolist(), values.tolist(), strict=True)]
        for row, values in zip(best.indices, best.values, strict=True)
    ]
    for place, row in zip(at, guesses, strict=True):
        ids[place] = row[0].id
    return Filled(tokenizer.decode(ids), guesses)


def _check_ids(model: Model, ids: list[int]) -> None:
    if wrong := [i for i in ids if i >= model.dims.vocab]:
        raise UsageError(f"the text holds the token id {wrong[0]}; this model's ids are 0 to {model.dims.vocab - 1}")


def _fill_spans(model: Model, text: str, max_new_tokens: int) -> Filled:
    tokenizer = model.tokenizer
    sentinels = [tokenizer.sentinel(k) for k in range(tokenizer.sentinels)]
    marked = _mark(text, MASK, lambda k: tokenizer.tokens([sentinels[k]])[0] if k < len(sentinels) else MASK)
    if sentinels and (own := tokenizer.token(sentinels[0])) != "<extra_id_0>":  # mT5's names begin with a space
        marked = re.sub("▁?(?=<extra_id_[0-9]+>)", str(own)[0], marked)
    if model.arch.structure == "decoder":
        ids = _corrupted(model, marked)
    else:
        ids = tokenizer.encode(marked, allow_special=True)
    asked = [i for i in ids if i in sentinels]
    if not asked:
        raise UsageError(f"the text has no {MASK} to fill")
    answer = generate(model, [ids], max_new_tokens=max_new_tokens, temperature=0.0, num_beams=1)[0].ids
    ends = model.text.eos_ids
    spans: dict[int, list[int]] = {}
    here: list[int] = []
    for token in answer:
        if token in ends:
            break
        if token in sentinels:
            here = spans.setdefault(token, [])
        else:
            here.append(token)
    whole: list[int] = []
    for token in ids:
        whole += spans.get(token, []) if token in sentinels else [token]
    return Filled(tokenizer.decode(whole), spans=[tokenizer.decode(spans.get(s, [])) for s in asked])


def _corrupted(model: Model, text: str) -> list[int]:
    """The inputs of denoising in a decoder, as in training: a sentinel takes the place of the space before a word, and
    the mode of short spans stands in front, unless the text begins with one."""
    tokenizer, modes = model.tokenizer, model.text.extras if model.text is not None else ()
    if SHORT_SPANS in modes and not text.startswith(tuple(modes)):
        text = SHORT_SPANS + text
    first = [] if tokenizer.bos_id is None else [int(tokenizer.bos_id)]
    ids = tokenizer.encode(re.sub(" (?=<extra_id_[0-9]+>)", "", text), add_special=False, allow_special=True)
    return [*first, *ids]


def _fill_blanks(model: Model, text: str, max_new_tokens: int) -> Filled:
    """One blank after the other, each behind the filled ones before it."""
    tokenizer, known = model.tokenizer, blanks.blank_tokens(model)
    if known.start is None:
        raise UsageError("this model's tokenizer does not know the token that begins what fills a blank")
    ids = blanks.context(model, _mark(text, MASK, lambda k: tokenizer.tokens([known.blanks[0]])[0]), True)
    asked = [i for i in ids if i in known.blanks]
    if not asked:
        raise UsageError(f"the text has no {MASK} to fill")
    prompt, spans = list(ids), []
    for _ in asked:
        prompt.append(known.start)
        answer = generate(model, [prompt], max_new_tokens=max_new_tokens, temperature=0.0, num_beams=1)[0].ids
        spans.append([i for i in answer if i not in generation_config.eos_ids(model)])
        prompt += spans[-1]
    rest = iter(spans)
    whole = [i for token in ids for i in (next(rest) if token in known.blanks else [token])]
    return Filled(tokenizer.decode(whole), spans=[tokenizer.decode(s) for s in spans])


def _fill_middle(model: Model, text: str, max_new_tokens: int) -> Filled:
    """The one gap of a text, from the text before and behind it."""
    prefix, *rest = text.split(MASK)
    if len(rest) != 1:
        raise UsageError(f"this model fills one {MASK} of a text, and the text has {len(rest)}")
    ends = generation_config.eos_ids(model)
    answer = generate(model, [infill.prompt(model, prefix, rest[0])], max_new_tokens=max_new_tokens)[0].ids
    middle = model.tokenizer.decode_continuation(i for i in answer if i not in ends)
    return Filled(prefix + middle + rest[0], spans=[middle])


def _mark(text: str, mask: str, token: Callable[[int], str]) -> str:
    """`text` with the k-th mask replaced by `token(k)`."""
    count = iter(range(len(text)))
    return re.sub(re.escape(mask), lambda _: token(next(count)), text)
