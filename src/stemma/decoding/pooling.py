"""Texts as vectors: hidden states of tokens pooled into one (Reimers & Gurevych 2019, arXiv:1908.10084)."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.decoding.inputs import check_model, evaluating, language_ids, language_of, pad
from stemma.errors import CheckpointError, UsageError, did_you_mean
from stemma.nn.inputs import Inputs
from stemma.nn.model import Model

Pool = Literal["mean", "first", "last", "max", "pooler"]
POOLS = ("mean", "first", "last", "max", "pooler")


@torch.inference_mode()
def embed(
    model: Model,
    texts: str | Sequence[str | Sequence[int]],
    *,
    pool: Pool | None = None,
    normalize: bool | None = None,
    batch: int = 32,
    language: str | int | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
) -> Tensor:
    """A vector for each text (or list of token ids), in order: N D, in fp32.

    `pool`: over the last hidden states of all tokens (special ones too) the `mean` or the `max` of each dimension, the
    state of the `first` or the `last` token, or the output of the `pooler`. `normalize`: scale vectors to length 1.
    Defaults: what the checkpoint's sentence-transformers files say, else mean and True. The states are the encoder's
    where there is one. A text longer than the model reads is cut, with a warning. `prompt` is put before every text,
    not before ids; `prompt_name` names one of the checkpoint's; default: the checkpoint's usual one, "" is none.
    `language` as for `generate`. Raises UsageError for what cannot be, CheckpointError for weights that give no finite
    numbers.
    """
    check_model(model)
    own = model.pooling
    if pool is None and own is not None and own.pool is None:
        raise UsageError(f"this checkpoint's own way to a vector cannot be followed: {own.why}; choose a pool")
    pool = pool or (own.pool if own is not None else "mean")
    normalize = (own.normalize if own is not None else True) if normalize is None else normalize
    if pool not in POOLS:
        raise UsageError(f"pool={pool!r} is not known; it is one of {', '.join(POOLS)}{did_you_mean(str(pool), POOLS)}")
    if pool == "pooler" and model.pooler is None:
        raise UsageError("pool='pooler': this model has no pooler (its checkpoint came without one)")
    if batch < 1:
        raise UsageError(f"batch must be at least 1, not {batch}")
    before = _prompt(model, prompt, prompt_name)
    skip = _skipped(model, before)
    rows = _ids(model, [texts] if isinstance(texts, str) else list(texts), before)
    number = language_of(model, language)
    skips = [0 if not isinstance(text, str) else skip for text in ([texts] if isinstance(texts, str) else texts)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out = torch.empty(len(rows), model.dims.d_model, device=model.device)
    with evaluating(model):
        for start in range(0, len(order), batch):
            these = order[start : start + batch]
            out[these] = _vectors(model, [rows[i] for i in these], pool, number, [skips[i] for i in these])
    if not bool(out.isfinite().all()):
        raise CheckpointError(
            "the model's vectors are not finite: its weights are damaged, or too large for their type"
        )
    return F.normalize(out, dim=-1) if normalize else out


def _prompt(model: Model, prompt: str | None, name: str | None) -> str:
    """The text that is put before others. Raises UsageError for a name that is not known."""
    own = model.pooling
    known = own.prompts if own is not None else {}
    if name is not None and prompt is not None:
        raise UsageError("prompt and prompt_name say the same thing: give one of them")
    if name is not None and name not in known:
        names = ", ".join(known) or "none"
        raise UsageError(f"prompt_name={name!r}: this model's prompts are {names}{did_you_mean(name, known)}")
    if prompt is not None:
        return prompt
    name = name or (own.prompt if own is not None else None)
    return "" if name is None else known[name]


def _skipped(model: Model, prompt: str) -> int:
    """How many tokens at the beginning of a text are the prompt's and are not pooled."""
    own = model.pooling
    if not prompt or own is None or own.pool_prompt or model.tokenizer is None:
        return 0
    ids = _encode(model, prompt, None)[0]
    return len(ids) - (ids[-1:] in ([model.tokenizer.sep_id], [model.tokenizer.eos_id]))


def _vectors(
    model: Model, rows: Sequence[Sequence[int]], pool: str, language: int | None, skips: Sequence[int]
) -> Tensor:
    ids, real = pad(rows, model.device)
    filler = model.text.pad_id if model.text is not None else None
    if filler is not None and 0 <= filler < model.dims.vocab:  # else nothing reads what stands there
        ids = ids.masked_fill(~real, filler)
    mask = None if bool(real.all()) else real.long()
    read = model.decode if model.encoder is None else model.encode
    hidden = read(Inputs(ids, mask, langs=language_ids(ids, language)))
    if pool == "pooler":
        return model.pooled(hidden, ids, mask).float()
    hidden = hidden.float()
    used = real
    if any(skips):
        used = real & (torch.arange(ids.shape[1], device=ids.device) >= torch.tensor(skips, device=ids.device)[:, None])
    match pool:
        case "first":
            return hidden[:, 0]
        case "last":
            return hidden[torch.arange(len(ids), device=ids.device), real.sum(1) - 1]
        case "max":
            return hidden.masked_fill(~used[..., None], float("-inf")).amax(1)
    return (hidden * used[..., None]).sum(1) / used.sum(1, keepdim=True)


def _ids(model: Model, texts: Sequence[str | Sequence[int]], prompt: str) -> list[list[int]]:
    """The token ids of texts, none longer than the model reads."""
    own = model.pooling
    stack = model.decoder if model.encoder is None else model.encoder
    assert stack is not None
    limits = [n for n in (stack.position.limit, own.limit if own is not None else None) if n is not None]
    limit = min(limits, default=None)
    rows, cut = [], 0
    for i, text in enumerate(texts):
        row = _encode(model, prompt + text if isinstance(text, str) else text, limit)
        if not row[0]:
            raise UsageError(f"text {i} is empty: this model gives a vector to tokens, and it has none")
        if wrong := [t for t in row[0] if not 0 <= t < model.dims.vocab]:
            raise UsageError(
                f"text {i} holds the token id {wrong[0]}; this model's ids are 0 to {model.dims.vocab - 1}"
            )
        rows.append(row[0])
        cut += row[1]
    if cut:
        warnings.warn(f"{cut} of {len(texts)} texts are longer than {limit} tokens; the rest of them is not read",
                      stacklevel=4)  # fmt: skip
    return rows


def _encode(model: Model, text: str | Sequence[int], limit: int | None) -> tuple[list[int], bool]:
    """A text's ids and whether it was cut; a cut keeps the special tokens around it."""
    if not isinstance(text, str):
        try:
            whole = [operator.index(token) for token in text]
        except TypeError:
            raise UsageError("texts are strings or lists of whole token ids; one text is [[1, 2, 3]]") from None
        return whole[:limit], limit is not None and len(whole) > limit
    if model.tokenizer is None:
        raise CheckpointError(
            "a text needs a tokenizer, and this checkpoint came without one: put its tokenizer.json beside config.json"
        )
    if (own := model.pooling) is not None:  # as the library that wrote its files does
        text = text.strip().lower() if own.lower else text.strip()
    whole = model.tokenizer.encode(text)
    if limit is None or len(whole) <= limit:
        return whole, False
    plain = model.tokenizer.encode(text, add_special=False)
    around = len(whole) - len(plain)
    before = next((k for k in range(around + 1) if whole[k : k + len(plain)] == plain), 0)
    after = whole[before + len(plain) :]
    return [*whole[: before + max(limit - around, 0)], *after][:limit], True
