"""The forms of rows: zero-shot or few-shot, with options or without, and the input asked for in place of the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stemma.mixtures.tasks import OPTIONS, Example, Template

HEAD = "OPTIONS:\n- "  # google-research/FLAN, flan/preprocessors.py


@dataclass(frozen=True)
class Form:
    """`few`: examples of the task stand before the question; `options`: what there is to choose from is named;
    `inverted`: the input is asked for."""

    few: bool = False
    options: bool = True
    inverted: bool = False

    def name(self, chosen: bool) -> str:
        """In words; `chosen`: the row has options to choose from."""
        name = "few-shot" if self.few else "zero-shot"
        return f"{name}, inverted" if self.inverted else f"{name}, options" if self.options and chosen else name


ZERO, ZERO_OPEN, FEW, FEW_OPEN = Form(), Form(options=False), Form(True), Form(True, False)


@dataclass(frozen=True)
class Delimiters:
    """What stands around the parts of a few-shot prompt (google-research/FLAN, flan/v2/few_shot.py): `between` input
    and answer, `apart` between examples, `asks` and `answers` before an input and an answer."""

    between: str = "\n\n"
    apart: str = "\n\n\n"
    asks: str = "Q: "
    answers: str = "A: "


def listed(options: Sequence[str]) -> str:
    """What there is to choose from, as the end of a prompt."""
    return HEAD + "\n- ".join(options)


def written(example: Example, template: Template, options: bool) -> tuple[str, str]:
    """(prompt, completion) of an example, with its options where there are any and the template asks to choose."""
    block = listed(example.options) if options and example.options and not template.turned else ""
    prompt, completion = template.written({**example.fields, OPTIONS: f"{block}\n" if block else ""})
    if block and f"{{{OPTIONS}}}" not in template.prompt:
        prompt = f"{prompt}\n{block}"
    return prompt, completion


def few_shot(
    exemplars: Sequence[tuple[str, str]],
    prompt: str,
    limit: int,
    count: Callable[[str], int],
    how: Delimiters = Delimiters(),
) -> tuple[str, int]:
    """`prompt` behind as many of the exemplars (prompt, completion) as `limit` tokens hold, and how many these are."""
    last = f"{how.asks}{prompt}{how.between}{how.answers}".rstrip(" ")
    room = limit - count(last)
    shown: list[str] = []
    for asked, answer in exemplars:
        one = f"{how.asks}{asked}{how.between}{how.answers}{answer}{how.apart}"
        room -= count(one)
        if room < 0:
            break
        shown.append(one)
    return "".join(shown) + last, len(shown)
