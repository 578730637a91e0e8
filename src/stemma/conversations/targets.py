"""Ids of a conversation, and which of them are learnt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from stemma.conversations.shapes import Conversation
from stemma.conversations.texts import Text, Writer
from stemma.errors import DataError
from stemma.text.places import encode_places

LossOn = Literal["answers", "last answer", "everything"]


@dataclass(frozen=True)
class Example:
    """`ids` of a conversation; `targets`: whether each is learnt, as what follows the ids before it."""

    ids: list[int]
    targets: list[bool]

    def labels(self, ignored: int = -100) -> list[int]:
        """The ids, `ignored` where nothing is learnt."""
        return [i if learnt else ignored for i, learnt in zip(self.ids, self.targets, strict=True)]


def encode(tokenizer: Any, text: Text, loss_on: LossOn = "answers") -> Example:
    """The tokens of a text. A token is a target if any character of it lies in a target's span: the first token of an
    answer may hold the blank before it. The template's special tokens are tokens; their names in anybody's words are
    ordinary text. The tokenizer's first token stands in front where the text does not have it.

    Raises DataError for a text without a target, for one whose end no token could tell, and where a template leaves
    out the reasoning of an answer that is to be learnt."""
    check(tokenizer, text, loss_on)
    ids, places = _placed(tokenizer, text)
    targets = _learnt(places, text, loss_on)
    if _opens(tokenizer, ids):
        ids, targets = [tokenizer.bos_id, *ids], [False, *targets]
    if text.open_ended:
        ids, targets = [*ids, tokenizer.eos_id], [*targets, True]
    if not any(targets):
        raise DataError("no token of it is learnt")
    return Example(ids, targets)


def _learnt(places: list[tuple[int, int]], text: Text, loss_on: LossOn) -> list[bool]:
    spans = {"answers": text.spans, "last answer": text.spans[-1:], "everything": ((0, len(text.text)),)}[loss_on]
    return [any(begin < e and end > b for b, e in spans) for begin, end in places]


def learnt_places(tokenizer: Any, text: Text, loss_on: LossOn = "answers") -> list[tuple[int, int]]:
    """(begin, end) of each run of characters whose tokens are learnt."""
    _, places = _placed(tokenizer, text)
    runs: list[tuple[int, int]] = []
    for (begin, end), learnt in zip(places, _learnt(places, text, loss_on), strict=True):
        if learnt and runs and begin <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(end, runs[-1][1]))
        elif learnt:
            runs.append((begin, end))
    return runs


def check(tokenizer: Any, text: Text, loss_on: LossOn = "answers") -> None:
    """Raises DataError as `encode` does for a text without an end, or with an answer without its reasoning. Encodes
    nothing."""
    if text.open_ended and tokenizer.eos_id is None:
        raise DataError(
            "no token ends the answer, neither of the template nor of the tokenizer, so a model would never learn to "
            "stop; use another template"
        )
    last = len(text.spans) - 1
    learnt = {"answers": text.shortened, "last answer": [i for i in text.shortened if i == last], "everything": []}
    if lost := learnt[loss_on]:
        cure = "take <think> out of the data, or use another template"
        cure = f"learn the last answer alone, {cure}" if last not in text.shortened else cure
        raise DataError(
            f"the chat template leaves out the reasoning (<think>) of answer {lost[0] + 1}, which would be learnt "
            f"without it; {cure}"
        )


def unknown_tokens(tokenizer: Any, writer: Writer) -> list[str]:
    """The names in a writer's template that should be one token and are several to `tokenizer`, or none. A model that
    learns the template needs rows for them, which have to learn (`add_tokens`)."""
    return [
        name
        for name in writer.tokens()
        if (known := tokenizer.id(name)) is None
        or tokenizer.encode(name, add_special=False, allow_special=True) != [known]
    ]


def add_tokens(model: Any, names: Sequence[str]) -> list[int]:
    """Give a model and its tokenizer the special tokens of `names` that they lack, in place. Their rows begin as the
    mean of the known ones, and have to learn: with an adapter, by `TrainableTokens` beside it. Returns their ids.
    Raises UsageError for embeddings that a rewrite replaced."""
    from stemma.nn import vocabulary

    known, grown = model.tokenizer.vocab_size, model.tokenizer.grown(0, names)
    if grown.vocab_size > known:
        vocabulary.widen(model, grown.vocab_size, known)
        model.tokenizer = grown
    return [grown.id(name) for name in names]


def _opens(tokenizer: Any, ids: list[int]) -> bool:
    """Whether the tokenizer's first token is to be put in front of `ids`."""
    bos = tokenizer.bos_id
    return bos is not None and ids[:1] != [bos] and tokenizer.encode("a", add_special=True)[:1] == [bos]


def prompt_ids(tokenizer: Any, text: Text) -> list[int]:
    """The ids of a prompt (`Writer.prompt`): those that a whole conversation begins with."""
    ids, _ = _placed(tokenizer, text)
    return [tokenizer.bos_id, *ids] if _opens(tokenizer, ids) else ids


def _placed(tokenizer: Any, text: Text) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of a text and the place of each, cut where prompts end, if they end otherwise in it than alone, and where
    answers end, if a token holds an answer's letters and others: a model reads a prompt alone before it answers, and it
    stops where its answer ends."""
    ids, places = encode_places(tokenizer, text.text, text.words)
    cuts = {e for _, e in text.spans if any(b < e < end and text.text[e:end].strip() for b, end in places)}
    for end in text.asked:
        alone, _ = encode_places(tokenizer, text.text[:end], [w for w in text.words if w[1] <= end])
        if alone != ids[: len(alone)] or any(b < end < e for b, e in places):
            cuts.add(end)
    return encode_places(tokenizer, text.text, text.words, sorted(cuts)) if cuts else (ids, places)


def fit(
    talk: Conversation,
    longest: int,
    write: Writer,
    tokenizer: Any,
    loss_on: LossOn = "answers",
    said: Callable[[str], None] = lambda _: None,
) -> Example:
    """The example of a conversation in at most `longest` tokens: whole rounds are left out at its end until the rest
    fits. Raises DataError where not even the first round fits, since an example that is cut would lose its answer or
    its end."""
    _, example, rounds = fitting(talk, longest, write, tokenizer, loss_on)
    for _ in range(rounds):
        said("rounds left out")
    return example


def fitting(
    talk: Conversation, longest: int, write: Writer, tokenizer: Any, loss_on: LossOn = "answers"
) -> tuple[Text, Example, int]:
    """As `fit`: the text of what fits, its example, and how many rounds are left out."""
    head = 1 if talk.turns[:1] and talk.turns[0].role == "system" else 0
    turns = talk.turns if talk.turns[-1].role == "assistant" else talk.turns[:-1]
    rounds = 0
    while True:
        text = write.write(replace(talk, turns=turns))
        example = encode(tokenizer, text, loss_on)
        if len(example.ids) <= longest:
            return text, example, rounds
        if talk.liked is not None:
            raise DataError(
                f"it has {len(example.ids)} tokens, more than the {longest} of a row, and its end is learnt"
            )
        if len(turns) - head <= 2:
            raise DataError(f"its first round has {len(example.ids)} tokens, more than the {longest} of a row")
        rounds += 1
        turns = turns[:-2]
