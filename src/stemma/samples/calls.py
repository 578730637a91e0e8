"""Questions and the calls that answer them, with the documentation of each call, in the form of APIBench's rows
(Gorilla).

60 calls of 12 modules that do not exist. A row's `document` is the documentation beside the question; every second
row has one. `held_out` asks in other words, beside documentation that is right, of another call, or edited since.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

LICENCE = "Apache-2.0"
Beside = Literal["none", "right", "wrong", "edited"]

# module, domain: function, what it is for
MODULES: dict[tuple[str, str], dict[str, str]] = {
    ("meteo", "Weather"): {
        "rain": "how much rain will fall", "wind": "how hard the wind will blow", "warmth": "how warm it will be",
        "storm": "whether a storm is near", "sunrise": "when the sun will rise",
    },
    ("atlas", "Maps"): {
        "route": "which way leads to the next town", "height": "how high a hill is",
        "borders": "which countries touch each other", "parking": "where a car can be left",
        "ferry": "where a ferry goes",
    },
    ("purse", "Money"): {
        "exchange": "what a sum is worth in other coins", "loan": "what a loan costs a month",
        "tax": "how much tax is due", "budget": "how to spend less", "rent": "what a flat should cost",
    },
    ("quill", "Text"): {
        "summary": "what a long text says in short", "spelling": "which words are misspelt",
        "rhyme": "which words sound alike", "title": "what a good title is", "tone": "how polite a letter is",
    },
    ("lens", "Images"): {
        "caption": "what a photo shows", "faces": "how many people are in a photo",
        "colours": "which colours a photo has", "blur": "whether a photo is sharp", "crop": "where to cut a photo",
    },
    ("chime", "Sound"): {
        "script": "which words somebody said", "noise": "how to take the hum out of a recording",
        "tempo": "how fast a song is", "pitch": "whether a singer is in tune", "speaker": "who is speaking",
    },
    ("pulse", "Health"): {
        "sleep": "how well somebody slept", "steps": "how far somebody walked",
        "dose": "how much of a medicine to take", "pollen": "whether there is pollen today",
        "posture": "whether somebody sits well",
    },
    ("ladle", "Food"): {
        "recipe": "what to cook from leftovers", "swap": "what to use in place of eggs",
        "shelf": "how long a food stays fresh", "salt": "how much salt is in a dish",
        "menu": "what to serve to many guests",
    },
    ("stride", "Sports"): {
        "score": "who is winning a match", "table": "which team is first", "pace": "how fast to run a race",
        "drill": "which exercise is good for the back", "record": "how high the best jump was",
    },
    ("voyage", "Travel"): {
        "flight": "which flight is cheap", "train": "when the next train leaves", "hotel": "where a quiet room is free",
        "visa": "whether a visa is needed", "luggage": "how heavy a bag may be",
    },
    ("spade", "Gardens"): {
        "water": "when to water the beans", "frost": "whether it will freeze tonight", "seed": "when to sow carrots",
        "pest": "what eats the leaves", "soil": "whether the ground is sour",
    },
    ("shelf", "Books"): {
        "search": "which books are about a subject", "author": "who wrote a book",
        "review": "what readers think of a book", "series": "which volume comes next", "age": "for which age a book is",
    },
}  # fmt: skip
PROVIDERS = ("Lodestar", "Hearth", "Quarry", "Bluebell", "Anvil", "Meadow")
MODELS = (
    "amber", "birch", "cedar", "delta", "ember", "flint", "grove", "heron", "ivory", "jade", "kestrel", "larch",
    "maple", "north", "onyx", "pearl", "quartz", "raven", "slate", "topaz",
)  # fmt: skip
ASKED = (
    "I want to know {need}.", "Which call tells {need}?", "Please find out {need}.", "My app has to say {need}.",
    "Our users keep asking {need}.", "Write a call that tells me {need}.", "For school I must find out {need}.",
    "We build a tool for {domain}: it should tell {need}.", "How do I learn {need}?", "Can you help me to see {need}?",
    "A customer wonders {need}.", "Tell me {need}, with one line of code.",
)  # fmt: skip
ASKED_LATER = (
    "My neighbour would like to know {need}.", "Give me the code that finds {need}.", "What do I call to get {need}?",
)  # fmt: skip


def call_of(module: str, function: str, model: str, version: str) -> str:
    """A call as it is written."""
    return f"{module}.{function}(model='{model}', version='{version}')"


def apis(edited: bool = False) -> list[dict[str, Any]]:
    """The documentation of every call. `edited`: of a later time, when each has another model and another version."""
    draw, later = random.Random("calls"), random.Random("calls, later")
    found = []
    for (module, domain), functions in MODULES.items():
        provider = draw.choice(PROVIDERS)
        for function, need in functions.items():
            model, version = draw.choice(MODELS), f"{draw.randint(1, 9)}.{draw.randint(0, 9)}"
            if edited:
                model = later.choice([other for other in MODELS if other != model])
                version = later.choice(
                    [v for v in (f"{a}.{b}" for a in range(1, 10) for b in range(10)) if v != version]
                )
            found.append(
                {
                    "domain": domain, "framework": provider, "functionality": function,
                    "api_name": f"{module}.{function}", "api_call": call_of(module, function, model, version),
                    "api_arguments": {"model": model, "version": version}, "description": f"It tells {need}.",
                }
            )  # fmt: skip
    return found


def row_of(question: str, api: Mapping[str, Any], document: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A row of APIBench's form; the answer is the call of `api`."""
    call = api["api_call"]
    fields = {
        "domain": api["domain"], "api_call": call, "api_provider": api["framework"],
        "explanation": api["description"], "code": f"import {call.partition('.')[0]}\nanswer = {call}",
    }  # fmt: skip
    output = "\n".join(f"<<<{name}>>>: {text}" for name, text in fields.items())
    row = {"code": f"###Instruction: {question}\n###Output: {output}", "api_call": call, "provider": api["framework"]}
    return row | {"api_data": dict(api)} | ({} if document is None else {"document": dict(document)})


def _asked(form: str, api: Mapping[str, Any]) -> str:
    need = api["description"].removeprefix("It tells ").removesuffix(".")
    return form.format(need=need, domain=api["domain"].lower())


def rows(share: float = 0.5) -> Iterator[dict[str, Any]]:
    """The rows for training, in a mixed order; about that `share` of them has the right documentation beside the
    question."""
    draw = random.Random("calls, rows")
    pairs = [(form, api) for form in ASKED for api in apis()]
    draw.shuffle(pairs)
    for form, api in pairs:
        yield row_of(_asked(form, api), api, api if draw.random() < share else None)


def held_out(beside: Beside = "none") -> Iterator[dict[str, Any]]:
    """Questions in words that no row for training has. What is beside them: nothing, the right documentation, that of
    another call (the right answer stays the same), or that of the same call at a later time (the answer is as it
    says)."""
    draw = random.Random(f"calls, {beside}")
    now, later = apis(), apis(edited=True)
    for form in ASKED_LATER:
        for i, api in enumerate(now):
            question = _asked(form, api)
            match beside:
                case "none":
                    yield row_of(question, api)
                case "right":
                    yield row_of(question, api, api)
                case "wrong":
                    yield row_of(question, api, now[(i + draw.randrange(1, len(now))) % len(now)])
                case "edited":
                    yield row_of(question, later[i], later[i])


def right(said: str, row: Mapping[str, Any]) -> bool:
    """Whether an answer calls what the row does: the same function with the same arguments."""
    found = re.search(r"<<<api_call>>>:(.*?)(?:\n|<<<|\Z)", said, re.DOTALL)
    return found is not None and "".join(found[1].split()) == "".join(row["api_call"].split())
