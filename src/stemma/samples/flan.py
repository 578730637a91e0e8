"""Thirty-six small tasks in eleven clusters, with ten templates each and answers that can be checked: what stands in
for the sets of FLAN 2021 (Wei et al. 2021). Clusters share words and facts, so that one can in part be answered by what
the others teach. `text` holds the facts as plain statements, for a base to be pretrained on."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

LICENCE = "Apache-2.0"
EACH = 120  # rows of a task
TESTED = 6  # of so many different examples one is for tests
Row = dict[str, Any]


def _words(text: str) -> list[str]:
    return text.split()


KINDS = {
    "animal": "dog cat horse cow sheep fox goat hen duck mouse",
    "fruit": "apple pear plum fig lemon grape cherry melon peach lime",
    "colour": "red blue green black white yellow brown pink grey purple",
    "tool": "hammer saw drill axe spade rake knife file chisel pliers",
    "garment": "shirt coat hat sock glove scarf boot dress skirt belt",
    "vehicle": "car bus train ship tram truck bike boat plane van",
}
WORDS = {kind: tuple(names.split()) for kind, names in KINDS.items()}
KIND = {word: kind for kind, names in WORDS.items() for word in names}
EVERY = tuple(KIND)
NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April May June July August September October November December")
OPPOSITES = dict(
    pair.split("-")
    for pair in _words(
        "hot-cold big-small old-new fast-slow light-dark high-low full-empty open-closed wet-dry hard-soft rich-poor "
        "early-late strong-weak clean-dirty thick-thin happy-sad"
    )
)
OPPOSITES |= {b: a for a, b in OPPOSITES.items()}
PEOPLE = _words("Ann Ben Cora Dan Eva Finn Gus Hana Ivo Jon")
PLACES = _words("kitchen garden school shop station house barn office")
YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Sample:
    """A task. `asks`: three ways to ask; `turned`: a template whose input and output are exchanged; `make`: the fields
    of an example, with `answer`, and with `options` or `rationale` where it has them."""

    cluster: str
    asks: tuple[str, str, str]
    turned: tuple[str, str]
    make: Callable[[random.Random], Row]

    def templates(self) -> tuple[tuple[str, str], ...]:
        """(prompt, completion) of the nine that ask for the answer."""
        frames = ("{}", "Question: {}", "Tell me: {}")
        return tuple((frame.replace("{}", ask), "{answer}") for ask in self.asks for frame in frames)


def _some(draw: random.Random, words: Sequence[str], count: int) -> list[str]:
    return draw.sample(list(words), count)


def _list(words: Sequence[str]) -> str:
    return " ".join(words)


def _pick(draw: random.Random, options: Sequence[str], answer: str) -> Row:
    """`options` in any order, and the answer."""
    return {"options": draw.sample(list(options), len(options)), "answer": answer}


def _kind(draw: random.Random) -> Row:
    word = draw.choice(EVERY)
    others = _some(draw, [kind for kind in KINDS if kind != KIND[word]], 2)
    return {"word": word} | _pick(draw, [KIND[word], *others], KIND[word])


def _one_of_kind(draw: random.Random) -> Row:
    kind, *others = _some(draw, list(KINDS), 3)
    word = draw.choice(WORDS[kind])
    return {"kind": kind} | _pick(draw, [word, *(draw.choice(WORDS[other]) for other in others)], word)


def _odd(draw: random.Random) -> Row:
    kind, other = _some(draw, list(KINDS), 2)
    word = draw.choice(WORDS[other])
    found = _pick(draw, [word, *_some(draw, WORDS[kind], 2)], word)
    return {"words": _list(found["options"])} | found


def _is_kind(draw: random.Random) -> Row:
    word, yes = draw.choice(EVERY), draw.random() < 0.5
    kind = KIND[word] if yes else draw.choice([kind for kind in KINDS if kind != KIND[word]])
    return {"word": word, "kind": kind} | _pick(draw, YES_NO, "yes" if yes else "no")


def _same_kind(draw: random.Random) -> Row:
    a, yes = draw.choice(EVERY), draw.random() < 0.5
    b = draw.choice([w for w in EVERY if w != a and (KIND[w] == KIND[a]) is yes])
    return {"a": a, "b": b} | _pick(draw, YES_NO, "yes" if yes else "no")


def _in_list(draw: random.Random) -> Row:
    words, yes = _some(draw, EVERY, 5), draw.random() < 0.5
    return {"words": _list(words[:4]), "word": draw.choice(words[:4]) if yes else words[4]} | _pick(
        draw, YES_NO, "yes" if yes else "no"
    )


def _missing(draw: random.Random) -> Row:
    words = _some(draw, EVERY, 6)
    return {"words": _list(words[:3])} | _pick(draw, [words[0], words[4], words[5]], words[0])


def _compare(best: Callable[[list[int]], int]) -> Callable[[random.Random], Row]:
    def make(draw: random.Random) -> Row:
        found = draw.sample(range(21), 2)
        names = [draw.choice((str(n), NUMBERS[n])) for n in found]
        answer = names[found.index(best(found))]
        return {"a": names[0], "b": names[1]} | _pick(draw, names, answer)

    return make


def _is_more(draw: random.Random) -> Row:
    a, b = draw.sample(range(21), 2)
    return {"a": str(a), "b": str(b)} | _pick(draw, YES_NO, "yes" if a > b else "no")


def _sorted(reverse: bool, words: bool) -> Callable[[random.Random], Row]:
    def make(draw: random.Random) -> Row:
        found: list[Any] = _some(draw, EVERY, 3) if words else draw.sample(range(21), 3)
        texts = ([str(x) for x in some] for some in (found, sorted(found, reverse=reverse)))
        return dict(zip(("items", "answer"), map(_list, texts), strict=True))

    return make


def _copied(change: Callable[[list[str]], list[str]], count: int = 3) -> Callable[[random.Random], Row]:
    def make(draw: random.Random) -> Row:
        words = _some(draw, EVERY, count)
        return {"words": _list(words), "answer": _list(change(words))}

    return make


def _number(digits: bool) -> Callable[[random.Random], Row]:
    def make(draw: random.Random) -> Row:
        found = draw.sample(range(21), draw.choice((1, 2)))
        forms = _list([NUMBERS[n] for n in found]), _list([str(n) for n in found])
        return {"text": forms[not digits], "answer": forms[digits]}

    return make


def _next(names: Sequence[str], step: int) -> Callable[[random.Random], Row]:
    def make(draw: random.Random) -> Row:
        at = draw.randrange(len(names))
        answer = names[(at + step) % len(names)]
        others = _some(draw, [n for n in names if n not in (answer, names[at])], 2)
        return {"name": names[at]} | _pick(draw, [answer, *others], answer)

    return make


def _before(draw: random.Random) -> Row:
    a, b = draw.sample(range(12), 2)
    return {"a": MONTHS[a], "b": MONTHS[b]} | _pick(draw, YES_NO, "yes" if a < b else "no")


def _opposite(draw: random.Random) -> Row:
    word = draw.choice(list(OPPOSITES))
    others = _some(draw, [w for w in OPPOSITES if w not in (word, OPPOSITES[word])], 2)
    return {"word": word} | _pick(draw, [OPPOSITES[word], *others], OPPOSITES[word])


def _are_opposites(draw: random.Random) -> Row:
    word, yes = draw.choice(list(OPPOSITES)), draw.random() < 0.5
    other = OPPOSITES[word] if yes else draw.choice([w for w in OPPOSITES if w not in (word, OPPOSITES[word])])
    return {"a": word, "b": other} | _pick(draw, YES_NO, "yes" if yes else "no")


def _describe(draw: random.Random) -> Row:
    word, noun = draw.choice(list(OPPOSITES)), draw.choice(WORDS["vehicle"])
    return {"text": f"the {noun} is not {word}", "answer": f"the {noun} is {OPPOSITES[word]}"}


def _entails(draw: random.Random) -> Row:
    who, word, yes = draw.choice(PEOPLE), draw.choice(EVERY), draw.random() < 0.5
    kind = KIND[word] if yes else draw.choice([kind for kind in KINDS if kind != KIND[word]])
    return {"premise": f"{who} has one {word}", "hypothesis": f"{who} has one {kind}"} | _pick(
        draw, YES_NO, "yes" if yes else "no"
    )


def _denied(draw: random.Random) -> Row:
    noun, word, yes = draw.choice(WORDS["vehicle"]), draw.choice(list(OPPOSITES)), draw.random() < 0.5
    said = word if yes else OPPOSITES[word]
    return {"premise": f"the {noun} is {word}", "hypothesis": f"the {noun} is {said}"} | _pick(
        draw, YES_NO, "yes" if yes else "no"
    )


def _all_are(draw: random.Random) -> Row:
    kind, word, yes = draw.choice(list(KINDS)), draw.choice(list(OPPOSITES)), draw.random() < 0.5
    noun = draw.choice(WORDS[kind]) if yes else draw.choice([w for w in EVERY if KIND[w] != kind])
    return {"premise": f"every {kind} here is {word}", "hypothesis": f"the {noun} here is {word}"} | _pick(
        draw, YES_NO, "yes" if yes else "no"
    )


def _story(draw: random.Random) -> Row:
    people, things, places = _some(draw, PEOPLE, 2), _some(draw, EVERY, 2), _some(draw, PLACES, 2)
    told = [f"{p} has the {t} in the {q}." for p, t, q in zip(people, things, places, strict=True)]
    return {"passage": _list(told), "people": people, "things": things, "places": places}


def _asked(about: str, answer: str) -> Callable[[random.Random], Row]:
    def make(draw: random.Random) -> Row:
        story, one = _story(draw), draw.randrange(2)
        return {"passage": story["passage"], "about": story[about][one]} | _pick(
            draw, story[answer], story[answer][one]
        )

    return make


def _sum(sign: int) -> Callable[[random.Random], Row]:
    def make(draw: random.Random) -> Row:
        a, b = draw.randrange(11), draw.randrange(11)
        a, b = (a, b) if sign > 0 else (a + b, b)
        found = a + sign * b
        steps = f"{NUMBERS[a]} is {a} and {NUMBERS[b]} is {b} . {a} {'+' if sign > 0 else '-'} {b} = {found} ."
        return {"a": NUMBERS[a], "b": NUMBERS[b], "answer": str(found), "rationale": steps}

    return make


def _counted(draw: random.Random) -> Row:
    words = [draw.choice(EVERY) for _ in range(draw.randrange(2, 6))]
    steps = " ".join(f"{word} {number} ," for number, word in enumerate(words, 1))
    return {"words": _list(words), "answer": str(len(words)), "rationale": f"{steps} that makes {len(words)} ."}


TASKS: dict[str, Sample] = {
    "kind_of": Sample("category",
        ("What kind of thing is {word}?", "{word} belongs to which kind?", "Name the kind: {word}"),
        ("Name something of the kind {answer}.", "{word}"), _kind),
    "one_of_kind": Sample("category",
        ("Which of these is of the kind {kind}?", "Find the {kind}.", "Pick what belongs to the kind {kind}."),
        ("{answer} is of which kind?", "{kind}"), _one_of_kind),
    "odd_one_out": Sample("category",
        ("Which word does not fit: {words}?", "Find the odd one in {words}", "{words} : which is of another kind?"),
        ("Write words among which {answer} does not fit.", "{words}"), _odd),
    "is_kind": Sample("membership",
        ("Is {word} of the kind {kind}?", "Does {word} belong to the kind {kind}?",
         "{word} : is this of the kind {kind}?"),
        ("Name a word and a kind, so that it belongs: {answer}", "{word} {kind}"), _is_kind),
    "in_list": Sample("membership",
        ("Is {word} among {words}?", "{words} : does it hold {word}?", "Look for {word} in {words}. Is it there?"),
        ("Write a list and a word that is in it: {answer}", "{words} : {word}"), _in_list),
    "which_in_list": Sample("membership",
        ("Which of the options is among {words}?", "{words} : which option is there?",
         "Find the option that stands in {words}"),
        ("Write a list that holds {answer}.", "{words}"), _missing),
    "same_kind": Sample("membership",
        ("Are {a} and {b} of one kind?", "Do {a} and {b} belong together?", "{a} and {b} : one kind?"),
        ("Name two words of one kind: {answer}", "{a} {b}"), _same_kind),
    "larger": Sample("comparison",
        ("Which is larger, {a} or {b}?", "Take the larger of {a} and {b}.", "{a} and {b} : which is more?"),
        ("Name two numbers of which {answer} is the larger.", "{a} {b}"), _compare(max)),
    "smaller": Sample("comparison",
        ("Which is smaller, {a} or {b}?", "Take the smaller of {a} and {b}.", "{a} and {b} : which is less?"),
        ("Name two numbers of which {answer} is the smaller.", "{a} {b}"), _compare(min)),
    "is_more": Sample("comparison",
        ("Is {a} larger than {b}?", "Is {a} more than {b}?", "{a} and {b} : is the first larger?"),
        ("Name two numbers, the first larger: {answer}", "{a} {b}"), _is_more),
    "ascending": Sample("sorting",
        ("Sort the numbers: {items}", "Put {items} in order.", "{items} : from small to large?"),
        ("Write these in another order: {answer}", "{items}"), _sorted(False, False)),
    "descending": Sample("sorting",
        ("Sort the numbers backwards: {items}", "Put {items} in falling order.", "{items} : from large to small?"),
        ("Write these in some other order: {answer}", "{items}"), _sorted(True, False)),
    "alphabetical": Sample("sorting",
        ("Sort the words: {items}", "Put the words {items} in the order of letters.", "{items} : by the alphabet?"),
        ("Mix these words: {answer}", "{items}"), _sorted(False, True)),
    "copy": Sample("copying",
        ("Copy: {words}", "Write {words} once more.", "Repeat the words {words}"),
        ("Say again: {answer}", "{words}"), _copied(lambda w: w)),
    "reverse": Sample("copying",
        ("Reverse: {words}", "Write {words} from back to front.", "{words} : backwards?"),
        ("Turn around: {answer}", "{words}"), _copied(lambda w: w[::-1])),
    "first_word": Sample("copying",
        ("What is the first word of {words}?", "{words} : which comes first?", "Give the first of {words}"),
        ("Write words that begin with {answer}.", "{words}"), _copied(lambda w: w[:1])),
    "last_word": Sample("copying",
        ("What is the last word of {words}?", "{words} : which comes last?", "Give the last of {words}"),
        ("Write words that end with {answer}.", "{words}"), _copied(lambda w: w[-1:])),
    "to_digits": Sample("translation",
        ("Write in digits: {text}", "{text} : in digits?", "Which number is {text}?"),
        ("Write in words: {answer}", "{text}"), _number(True)),
    "to_words": Sample("translation",
        ("Write in words: {text}", "{text} : in words?", "How does one say {text}?"),
        ("Write in digits: {answer}", "{text}"), _number(False)),
    "next_number": Sample("translation",
        ("Which number follows {name}?", "{name} : what comes next?", "Count on from {name}"),
        ("Which number is before {answer}?", "{name}"), _next([str(n) for n in range(21)], 1)),
    "day_after": Sample("dates",
        ("Which day follows {name}?", "What day comes after {name}?", "{name} is today. Which day is tomorrow?"),
        ("Which day is before {answer}?", "{name}"), _next(DAYS, 1)),
    "day_before": Sample("dates",
        ("Which day is before {name}?", "What day precedes {name}?", "{name} is today. Which day was yesterday?"),
        ("Which day is after {answer}?", "{name}"), _next(DAYS, -1)),
    "month_after": Sample("dates",
        ("Which month follows {name}?", "What month comes after {name}?", "It is {name} . Which month is next?"),
        ("Which month is before {answer}?", "{name}"), _next(MONTHS, 1)),
    "month_order": Sample("dates",
        ("Is {a} before {b} in a year?", "Does {a} come earlier than {b}?", "{a} and {b} : is the first earlier?"),
        ("Name two months, the first earlier: {answer}", "{a} {b}"), _before),
    "opposite": Sample("opposites",
        ("What is the opposite of {word}?", "{word} : its opposite?", "Which word means the reverse of {word}?"),
        ("{answer} is the opposite of what?", "{word}"), _opposite),
    "are_opposites": Sample("opposites",
        ("Are {a} and {b} opposites?", "Is {a} the opposite of {b}?", "{a} and {b} : opposites?"),
        ("Name two words that are opposites: {answer}", "{a} {b}"), _are_opposites),
    "without_not": Sample("opposites",
        ("Say without not: {text}", "{text} : so what is it?", "Put it the other way: {text}"),
        ("Say with not: {answer}", "{text}"), _describe),
    "entails": Sample("entailment",
        ("{premise} . Does it follow that {hypothesis}?", "If {premise} , is it so that {hypothesis}?",
         "Given {premise} : true or not, {hypothesis}?"),
        ("Write two statements, the second following: {answer}", "{premise} . {hypothesis}"), _entails),
    "contradicts": Sample("entailment",
        ("{premise} . Can one say that {hypothesis}?", "Since {premise} , is it right that {hypothesis}?",
         "Known: {premise} . Is this so: {hypothesis}?"),
        ("Write two statements that agree: {answer}", "{premise} . {hypothesis}"), _denied),
    "every": Sample("entailment",
        ("{premise} . Then {hypothesis}?", "Suppose {premise} . Must it be that {hypothesis}?",
         "{premise} : is it sure that {hypothesis}?"),
        ("Write a rule and a case that it covers: {answer}", "{premise} . {hypothesis}"), _all_are),
    "who_has": Sample("reading",
        ("{passage} Who has the {about}?", "{passage} The {about} is with whom?", "Who? {passage} the {about}"),
        ("Write a text in which {answer} has the {about}.", "{passage}"), _asked("things", "people")),
    "where_is": Sample("reading",
        ("{passage} Where is {about}?", "{passage} In which place is {about}?", "Where? {passage} {about}"),
        ("Write a text in which {about} is in the {answer}.", "{passage}"), _asked("people", "places")),
    "what_has": Sample("reading",
        ("{passage} What does {about} have?", "{passage} Which thing is with {about}?", "What? {passage} {about}"),
        ("Write a text in which {about} has the {answer}.", "{passage}"), _asked("people", "things")),
    "add": Sample("arithmetic",
        ("How much is {a} plus {b}?", "Add {a} and {b}.", "{a} plus {b} : how many?"),
        ("Write a sum that gives {answer}.", "{a} plus {b}"), _sum(1)),
    "subtract": Sample("arithmetic",
        ("How much is {a} minus {b}?", "Take {b} from {a}.", "{a} minus {b} : how many?"),
        ("Write a difference that gives {answer}.", "{a} minus {b}"), _sum(-1)),
    "count": Sample("arithmetic",
        ("How many words are these: {words}?", "Count the words {words}", "{words} : how many?"),
        ("Write so many words: {answer}", "{words}"), _counted),
}  # fmt: skip
CLUSTERS = tuple(dict.fromkeys(sample.cluster for sample in TASKS.values()))


def examples(name: str, count: int = EACH, tests: bool = False, seed: int = 1) -> list[Row]:
    """Examples of a task as fields. Those for `tests` are never among the others: what is asked decides it."""
    draw = random.Random(f"{name} {seed} {tests}")
    found: list[Row] = []
    for _ in range(200 * count):
        row = TASKS[name].make(draw)
        asked = name + repr(sorted((key, value) for key, value in row.items() if key != "rationale"))
        if (zlib.crc32(asked.encode()) % TESTED == 0) is tests:
            found.append(row)
        if len(found) == count:
            break
    return found


def asked(prompt: str, row: Row) -> str:
    """A prompt with the fields of a row, and what there is to choose from."""
    text = prompt.format(**row)
    return text + "\nOPTIONS:\n- " + "\n- ".join(row["options"]) if "options" in row else text


def rows(tests: bool = False, clusters: Sequence[str] = CLUSTERS, each: int = EACH) -> Iterator[Row]:
    """Zero-shot rows of all tasks in turn, one in ten turned around; those for `tests` have the options as a list, and
    none of them is turned around."""
    draw = random.Random(f"rows {tests}")
    made = {n: examples(n, each, tests) for n, sample in TASKS.items() if sample.cluster in clusters}
    for number in range(each):
        for name, some in made.items():
            if number >= len(some):
                continue
            row, sample = some[number], TASKS[name]
            about = {"task": name, "cluster": sample.cluster}
            if not tests and draw.random() < 0.1:
                prompt, completion = (text.format(**row) for text in sample.turned)
                yield {"prompt": prompt, "completion": completion, **about}
                continue
            ask, answer = draw.choice(sample.templates())
            found: Row = {"prompt": asked(ask, row), "completion": answer.format(**row), **about}
            yield {**found, "options": row["options"]} if tests and "options" in row else found


def text(seed: int = 1) -> Iterator[str]:
    """Plain statements of the facts that the tasks are about, in paragraphs of ten, without end."""
    draw = random.Random(f"text {seed}")

    def statement() -> str:
        word, other, at = draw.choice(EVERY), draw.choice(list(OPPOSITES)), draw.randrange(20)
        a, b = sorted(draw.sample(range(21), 2))
        day, month, words = draw.randrange(7), draw.randrange(12), _some(draw, EVERY, 3)
        return draw.choice(
            (
                f"{word} is of the kind {KIND[word]} .",
                f"the opposite of {other} is {OPPOSITES[other]} .",
                f"{at} is {NUMBERS[at]} . {NUMBERS[at]} is {at} .",
                f"{at + 1} follows {at} .",
                f"{a} is smaller than {b} . {b} is larger than {a} .",
                f"{NUMBERS[a]} is smaller than {NUMBERS[b]} .",
                f"{DAYS[day]} is before {DAYS[(day + 1) % 7]} .",
                f"{MONTHS[month]} is before {MONTHS[(month + 1) % 12]} .",
                f"{_list(words)} : {_list(words)} .",
                _story(draw)["passage"],
            )
        )

    while True:
        yield " ".join(statement() for _ in range(10))
