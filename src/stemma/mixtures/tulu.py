"""The mixtures of Tulu 1 and 2 (Wang et al. 2023, arXiv:2306.04751; Ivison et al. 2023, arXiv:2311.10702), as
allenai/open-instruct makes them (scripts/data/sft_v1_v2): sources, caps, forms, and the filter of words.

A source is named by the user (`oasst1=FILE`); rows of FLAN and chains of thought are those of `stemma data mixture
flan2022` or of the release (inputs, targets)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stemma import conversations
from stemma.conversations.shapes import Conversation, Turn
from stemma.data import random as draw
from stemma.errors import DataError, UsageError, did_you_mean
from stemma.mixtures.tasks import number_of

CHOSEN, JOINED = 211, 212  # keys of draws
Messages = list[dict[str, str]]
Form = Literal["conversation", "prompt", "instruction", "tree", "best of tree"]

# conversations in which one of these stands are left out of Tulu 2, whatever the case of their letters
WORDS = (
    "OpenAI", "Open AI", "ChatGPT", "Chat GPT", "GPT-3", "GPT3", "GPT 3", "GPT-4", "GPT4", "GPT 4", "GPT-3.5",
    "GPT3.5", "GPT 3.5", "BingChat", "Bing Chat", "BARD", "Palm", "Anthropic", "Claude", "LAION", "Open Assistant",
    "OpenAssistant",
)  # fmt: skip
# how an instruction and its input are one text; each row draws one (the words are this project's)
WITH_INPUT = (
    "{instruction}\n\n{input}",
    "{instruction}\n{input}",
    "{instruction}\n\nInput: {input}\n\nOutput:",
    "Task: {instruction}\nInput: {input}\nAnswer:",
    "{instruction}\n\nThe input is this:\n{input}\n\nAnswer:",
)
WITHOUT_INPUT = ("{instruction}", "{instruction}\n\n", "{instruction}\nAnswer:", "Task: {instruction}\n\n")
# what a message has beside its tokens when a conversation is divided (FastChat's split of ShareGPT)
AROUND = 6
# what fields are called in OpenOrca's and the hard-coded rows
CALLED = {"system_prompt": "system", "Prompt": "prompt", "Output": "completion"}
STAND_INS = {
    "flan_v2": "builtin:flan2022",
    "gpt4_alpaca": "builtin:instructions",
    "sharegpt": "builtin:dialogues,builtin:captain",
    "hard_coded": "builtin:hard_coded",
}


@dataclass(frozen=True)
class Source:
    """`form`: how its rows are read; `cap`: the most rows (None: all); `repeat`: how often each is taken; `split`: the
    tokens at which a longer conversation is divided; `filtered`: whether the filter of words is applied."""

    name: str
    form: Form = "conversation"
    cap: int | None = None
    repeat: int = 1
    split: int | None = None
    filtered: bool = True


@dataclass(frozen=True)
class Mixture:
    """Sources in order; `words`: conversations in which one of them stands are left out."""

    name: str
    about: str
    sources: tuple[Source, ...]
    words: tuple[str, ...] = ()

    def source(self, name: str) -> Source:
        """The source called `name`. Raises UsageError if there is none."""
        for source in self.sources:
            if source.name == name:
                return source
        known = [source.name for source in self.sources]
        raise UsageError(f"{self.name} has no source {name!r}; it has {', '.join(known)}{did_you_mean(name, known)}")


MIXTURES = {
    mixture.name: mixture
    for mixture in (
        Mixture(
            "tulu",
            "Tulu 1: seven sets of people's and machines' instructions",
            (
                Source("flan_v2", "prompt", 100_000),
                Source("cot_zero_shot", "prompt", 50_000),
                Source("cot_few_shot", "prompt", 50_000),
                Source("oasst1", "tree"),
                Source("dolly", "instruction"),
                Source("gpt4_alpaca", "instruction"),
                Source("code_alpaca", "instruction"),
                Source("sharegpt", split=2048),
            ),
        ),
        Mixture(
            "tulu2",
            "Tulu 2: fewer and better rows, longer conversations, words filtered",
            (
                Source("flan_v2", "prompt", 50_000),
                Source("cot_zero_shot", "prompt", 25_000),
                Source("cot_few_shot", "prompt", 25_000),
                Source("oasst1", "best of tree"),
                Source("lima"),
                Source("gpt4_alpaca", "instruction", 20_000),
                Source("code_alpaca", "instruction"),
                Source("sharegpt", split=4096),
                Source("wizardlm", cap=30_000),
                Source("open_orca", cap=30_000),
                Source("science"),
                Source("hard_coded", repeat=10, filtered=False),
            ),
            WORDS,
        ),
    )
}


# ---------------------------------------------------------------- how rows are read


def paths(node: Mapping[str, Any], best: bool, before: Sequence[Turn] = ()) -> Iterator[tuple[Turn, ...]]:
    """The conversations of a tree of OASST: a path from its root to each answer that nobody replied to; with `best`
    the reply of the highest quality alone is followed at every message. Raises DataError for what is no tree."""
    role, text = node.get("role"), node.get("text")
    if role not in ("prompter", "assistant") or not isinstance(text, str):
        raise DataError("a message of the tree has no role (prompter, assistant) or no text")
    if node.get("deleted"):
        return
    turns = (*before, Turn("user" if role == "prompter" else "assistant", text))
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
        raise DataError("the replies of a message of the tree are no list of messages")
    if not replies and role == "assistant":
        yield turns
    there = [reply for reply in replies if not reply.get("deleted")]
    if best:
        there = sorted(there, key=_quality, reverse=True)[:1]
    for reply in there:
        yield from paths(reply, best, turns)


def _quality(node: Mapping[str, Any]) -> float:
    """The mean of what people said of a message's quality; 0 where nobody did."""
    labels = node.get("labels")
    found = labels.get("quality") if isinstance(labels, dict) else None
    value = found.get("value") if isinstance(found, dict) else None
    return float(value) if isinstance(value, int | float) else 0.0


def _conversation(row: Mapping[str, Any]) -> Conversation:
    row = {CALLED.get(name, name): value for name, value in row.items()}
    if "instruction" not in row and "input" in row and "output" in row:  # of the science sets
        row = {"prompt": row["input"], "completion": row["output"]}
    return conversations.read(row)


def _prompt(row: Mapping[str, Any]) -> Conversation:
    """A row of FLAN: a prompt that ends neither with a line nor with a colon gets the end of a line."""
    talk = conversations.read(row)
    asked = talk.turns[-2].content
    if not asked.endswith("\n") and not asked.rstrip().endswith(":"):
        talk = Conversation((*talk.turns[:-2], Turn("user", asked + "\n"), talk.turns[-1]))
    return talk


def _instruction(row: Mapping[str, Any], luck: float) -> Conversation:
    """A row of an instruction, perhaps an input, and an answer, written in one of several ways."""
    if "context" in row and "response" in row:  # as Dolly calls them
        row = {"instruction": row.get("instruction"), "input": row["context"], "output": row["response"]}
    talk = conversations.read(row)
    forms = WITH_INPUT if talk.input else WITHOUT_INPUT
    asked = forms[int(luck * len(forms))].replace("{instruction}", (talk.instruction or talk.turns[0].content).strip())
    return Conversation(
        (Turn("user", asked.replace("{input}", talk.input.strip())), Turn("assistant", talk.answers[-1].strip()))
    )


def divided(talk: Conversation, longest: int, count: Callable[[str], int]) -> list[Conversation]:
    """A conversation as pieces of whole rounds of at most `longest` tokens each; a longer round is left out."""
    head = talk.turns[:1] if talk.turns[:1] and talk.turns[0].role == "system" else ()
    turns = talk.turns[len(head) :]
    pieces: list[list[Turn]] = [[]]
    size = 0
    for i in range(0, len(turns) - 1, 2):
        round_ = turns[i : i + 2]
        own = sum(count(turn.content) + AROUND for turn in round_)
        if size + own > longest:
            pieces.append([])
            size = 0
        if own <= longest:
            pieces[-1] += round_
            size += own
    return [Conversation((*head, *piece)) for piece in pieces if piece]


def barred(talk: Conversation, words: Sequence[str]) -> bool:
    """Whether one of `words` stands in a message, whatever the case of its letters."""
    return any(word.lower() in turn.content.lower() for turn in talk.turns for word in words)


# ---------------------------------------------------------------- the rows of a mixture


@dataclass
class Rows:
    """The rows of a mixture from the rows of its sources, `read` by name. `counts`: by source what was taken and what
    was left out; `wrong`: what is wrong with the first row of a source that cannot be read. Raises UsageError for a
    source that the mixture has not."""

    mixture: Mixture
    read: Mapping[str, Callable[[], Iterator[Mapping[str, Any]]]]
    seed: int = 1
    count: Callable[[str], int] | None = None
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.read:
            self.mixture.source(name)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows, source by source. Raises DataError for a source without a row."""
        self.counts.clear()
        for source in self.mixture.sources:
            if source.name in self.read:
                yield from self._of(source)

    def _of(self, source: Source) -> Iterator[dict[str, Any]]:
        talks = list(self._talks(source))
        if not talks:
            why = f" ({self.wrong[source.name]})" if source.name in self.wrong else ""
            raise DataError(f"source {source.name} of {self.mixture.name} has no row that can be read{why}")
        if source.cap is not None and source.cap < len(talks):
            chosen = sorted(draw.permutation((self.seed, CHOSEN, number_of(source.name)), len(talks))[: source.cap])
            talks = [talks[i] for i in chosen]
        for talk in talks * source.repeat:
            if source.filtered and barred(talk, self.mixture.words):
                self.counts[source.name, "rows left out by the filter of words"] += 1
                continue
            self.counts[source.name, "rows"] += 1
            yield {"messages": talk.messages, "task": source.name, "form": source.form}

    def _talks(self, source: Source) -> Iterator[Conversation]:
        lucks = (self.seed, JOINED, number_of(source.name))
        for number, row in enumerate(self.read[source.name]()):
            try:
                found = self._read(source, row, float(draw.uniform(lucks, 1, number)[0]))
            except DataError as error:
                self.wrong.setdefault(source.name, f"row {number + 1}: {error}")
                self.counts[source.name, "rows that cannot be read"] += 1
                continue
            if source.split is not None and self.count is not None:
                found = [piece for talk in found for piece in divided(talk, source.split, self.count)]
            yield from found

    def _read(self, source: Source, row: Mapping[str, Any], luck: float) -> list[Conversation]:
        match source.form:
            case "tree" | "best of tree":
                if not isinstance(row.get("prompt"), dict):
                    raise DataError("it has no tree of messages under 'prompt'")
                return [Conversation(turns) for turns in paths(row["prompt"], source.form == "best of tree")]
            case "prompt":
                return [_prompt(row)]
            case "instruction":
                return [_instruction(row, luck)]
        return [_conversation(row)]
