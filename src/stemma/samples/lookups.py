"""Long documents in which something that was said early is asked for later, of any length, as LongChat-Lines (keys with
values) and the passkey test (one sentence among filler) have them. Made of a list of words, with answers to check.

    horse red ; lemon salt ; bridge tent ; ... ? lemon salt ; ? bridge tent ;
    the boat is near the lake . ... the pass key is red salt tent . ... the pass key is red salt tent .
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

LICENCE = "Apache-2.0"
MANY = 800  # of the stand-in
PAIRS = (8, 140)  # of its documents
FILLER = (4, 120)  # sentences of its texts with a pass key

_NOUNS = (
    "anchor apple april arm arrow autumn badge bag ball bank barn basket beach bean bear bed bee bell belt bench "
    "bird boat bone book boot bottle bowl box branch bread brick bridge broom brush bucket bus butter button cable "
    "cake camel camp candle canoe carpet castle cat cave chain chair chalk cheese cherry church circle clay clock "
    "cloud coal coat coffee coin comb copper cork corn cotton cow crane crow crown cup curtain daisy dance deer "
    "desk dish dog door dragon dress drum duck eagle ear earth elbow engine eye feather fence ferry field finger "
    "fire fish flag flute fog forest fork fox frog garden gate ghost giant glass glove goat gold goose grape grass "
    "guitar hammer hand harbour hat hawk hill honey hook horn horse hotel house ice ink iron island ivory jacket "
    "jar jewel juice kettle key king kite kitten knee knife lake lamb lamp leaf leather lemon letter library light "
    "lion lock magnet map maple marble market mask meadow melon milk mill mirror monkey moon morning mouse needle "
    "nest net night nose oak ocean olive onion orange orchard oven owl paint palace paper parrot peach pearl pencil "
    "pepper piano pig pillow pine pipe planet plate plum pocket pond potato prince pump queen rabbit rain raven "
    "ribbon rice ring river road robin rock roof rope rose salt sand saw scarf school sea shadow sheep shell ship "
    "shirt shoe shovel silk silver skirt sky smoke snail snow soap sock soup spider spoon spring square stable star "
    "stone storm stove straw street sugar summer sun swan sword table tail tea temple tent thread thumb tiger tower "
    "toy train tree trumpet tulip turtle umbrella valley vase village violin wagon wall water wave wheat wheel "
    "whistle wind window wine wing winter wolf wood wool worm yard zebra"
)
WORDS = tuple(_NOUNS.split())
KEYS, VALUES = WORDS[::2], WORDS[1::2]
PLACES = ("near", "behind", "under", "beside", "above")


def pairs(draw: random.Random, many: int) -> list[tuple[str, str]]:
    """So many keys, each once, with values. Raises ValueError for more than there are keys."""
    return [(key, draw.choice(VALUES)) for key in draw.sample(KEYS, many)]


def register(draw: random.Random, many: int, asked: int) -> str:
    """A document of `many` keys with values, then `asked` of them again, in any order."""
    known = pairs(draw, many)
    again = draw.sample(known, min(asked, many))
    return " ".join([*(f"{k} {v} ;" for k, v in known), *(f"? {k} {v} ;" for k, v in again)])


def filler(draw: random.Random, many: int) -> list[str]:
    """Sentences that say nothing of a pass key."""
    return [f"the {draw.choice(KEYS)} is {draw.choice(PLACES)} the {draw.choice(VALUES)} ." for _ in range(many)]


def passkey(draw: random.Random, many: int, depth: float | None = None) -> tuple[str, str]:
    """(a text of `many` sentences with a pass key among them, up to where it is to be said again; the key). `depth`:
    where it stands, 0 at the beginning and 1 at the end; None: anywhere."""
    key = " ".join(draw.choice(VALUES) for _ in range(3))
    said = filler(draw, many)
    said.insert(round((draw.random() if depth is None else depth) * many), f"the pass key is {key} .")
    return " ".join([*said, "the pass key is"]), key


def rows() -> Iterator[dict[str, Any]]:
    """Documents to learn from: registers and texts with a pass key in turn, of many lengths."""
    draw = random.Random("lookups")
    for number in range(MANY):
        if number % 4 == 3:
            text, key = passkey(draw, draw.randint(*FILLER))
            yield {"text": f"{text} {key} ."}
        else:
            many = draw.randint(*PAIRS)
            yield {"text": register(draw, many, max(4, many // 2))}


def registers(many: int, documents: int, asked: int | None = None, seed: int = 0) -> Iterator[str]:
    """Documents to learn from, each of `many` keys, `asked` of which (left out, all) come again."""
    draw = random.Random(f"registers {seed}")
    for _ in range(documents):
        yield register(draw, many, many if asked is None else asked)


def questions(many: int, documents: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Held-out questions, each on a document of its own with `many` keys: `text` up to the key that is asked for, the
    `answer`, and the `depth` of its key (0: the first of the document)."""
    draw = random.Random(f"questions {seed}")
    for _ in range(documents):
        known = pairs(draw, many)
        place = draw.randrange(many)
        text = " ".join([*(f"{k} {v} ;" for k, v in known), f"? {known[place][0]}"])
        yield {"text": text, "answer": known[place][1], "depth": place / max(1, many - 1)}


def passkeys(many: int, documents: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Held-out texts of `many` sentences with a pass key, which the `answer` says again."""
    draw = random.Random(f"passkeys {seed}")
    for number in range(documents):
        depth = number / max(1, documents - 1)
        text, key = passkey(draw, many, depth)
        yield {"text": text, "answer": key, "depth": depth}


def right(said: str, row: dict[str, Any]) -> bool:
    """Whether what was said after a held-out text begins with its answer."""
    wanted = str(row["answer"]).split()
    return said.split()[: len(wanted)] == wanted
