"""Ghost Attention (Touvron et al. 2023, LLaMA 2, section 3.3): data that teach a model to follow an instruction through
a whole conversation.

The answers are drawn with the instruction before every user's words (`everywhere`, `sampled`); what is learnt has it
before the first alone (`at_first`), and only the last answer is a target, since the earlier ones were not drawn so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

from stemma.conversations.shapes import Conversation, Turn
from stemma.declare.tasks import Ghost
from stemma.errors import DataError


def everywhere(talk: Conversation, instruction: str) -> Conversation:
    """`talk` with the instruction before the words of every user's turn: what a model reads when it draws answers."""
    return replace(talk, turns=tuple(_with(t, instruction) if t.role == "user" else t for t in talk.turns))


def at_first(talk: Conversation, instruction: str, system: bool = False) -> Conversation:
    """`talk` with the instruction before the first user's words, or as its system message: what is learnt."""
    turns = list(talk.turns)
    headed = bool(turns) and turns[0].role == "system"
    if system:
        turns[:1] = [_with(turns[0], instruction)] if headed else [Turn("system", instruction), *turns[:1]]
    else:
        turns[headed] = _with(turns[headed], instruction)
    return replace(talk, turns=tuple(turns))


def sampled(
    talk: Conversation, instruction: str, answer: Callable[[Conversation], str], system: bool = False
) -> Conversation:
    """`talk` with answers that `answer` draws of the conversation up to each user's turn, in which the instruction
    stands before all of these; in the result it stands before the first alone. Raises DataError for an empty answer."""
    asked: list[Turn] = []
    for turn in talk.turns:
        if turn.role == "assistant":
            continue
        asked.append(turn)
        if turn.role == "user":
            said = answer(everywhere(Conversation(tuple(asked)), instruction))
            if not said.strip():
                raise DataError(f"nothing was answered to turn {len(asked)}")
            asked.append(Turn("assistant", said))
    return at_first(Conversation(tuple(asked)), instruction, system)


def learnt(talk: Conversation, ghost: Ghost) -> Conversation:
    """The conversation that is learnt: with some of the instructions of `ghost`, drawn by a hash of the words, or with
    its own system message as the instruction. Raises DataError where there is neither."""
    own = talk.turns[0].content if talk.turns[:1] and talk.turns[0].role == "system" else ""
    if not ghost.instructions:
        if not own.strip():
            raise DataError("it has no system message, and Ghost Attention needs an instruction")
        return at_first(replace(talk, turns=talk.turns[1:]), own, ghost.system)
    words = "\0".join(turn.content for turn in talk.turns)

    def rank(what: str) -> bytes:
        return hashlib.blake2b(f"{what}\0{words}".encode("utf-8", "replace"), digest_size=8).digest()

    count = 1 + int.from_bytes(rank(""), "little") % ghost.together
    chosen = sorted(ghost.instructions, key=rank)[:count]
    return at_first(talk, " ".join(chosen), ghost.system)


def _with(turn: Turn, instruction: str) -> Turn:
    return Turn(turn.role, f"{instruction}\n\n{turn.content}")
