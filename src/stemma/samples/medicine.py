"""Short medical questions, made of a small table of widely known facts (Med-PaLM). They are for trying a method, and
are no advice.

Three tasks, as Med-PaLM's data have several: `choice` (four options, the answer is a letter), `short` (the answer is a
word or two) and `judge` (yes or no). PROMPTS holds a written prompt for each: instructions and worked examples, with
the reasoning or without. `statements` gives the facts as text, for a base model to read.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

LICENCE = "Apache-2.0"
HELD = 4  # one fact of so many is held out
LETTERS = "ABCD"


class Kind(NamedTuple):
    """Facts of one kind: how one is said, asked and asked for, each with `{x}`, and `{y}` where the answer stands."""

    says: str
    asks: str
    also: str
    facts: tuple[tuple[str, str], ...]


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Facts that are written as `x: y; x: y`."""
    return tuple((x.strip(), y.strip()) for x, _, y in (one.partition(":") for one in text.split(";")))


TABLE: dict[str, Kind] = {
    "organ": Kind(
        "The organ that {x} is the {y}.",
        "Which organ {x}?",
        "Name the organ that {x}.",
        _pairs(
            "pumps blood: heart; filters blood into urine: kidney; makes bile: liver; stores bile: gallbladder; "
            "takes up oxygen from air: lung; holds urine: bladder; churns food with acid: stomach; makes insulin: "
            "pancreas; removes old red blood cells: spleen; covers the whole body: skin; senses light: eye; senses "
            "sound: ear; thinks and remembers: brain; takes up most nutrients: small intestine; takes up water from "
            "waste: large intestine; carries a child before birth: uterus"
        ),
    ),
    "vitamin": Kind(
        "A lack of {x} leads to {y}.",
        "What does a lack of {x} lead to?",
        "Which illness comes from a lack of {x}?",
        _pairs(
            "vitamin A: night blindness; vitamin B1: beriberi; vitamin B3: pellagra; vitamin B12: pernicious anaemia; "
            "vitamin C: scurvy; vitamin D: rickets; vitamin K: bleeding; iron: anaemia; iodine: goitre; folate in "
            "pregnancy: neural tube defects; calcium: weak bones; fluoride: tooth decay"
        ),
    ),
    "hormone": Kind(
        "The hormone {x} is made by the {y}.",
        "Which gland or organ makes {x}?",
        "Where is {x} made?",
        _pairs(
            "insulin: pancreas; thyroxine: thyroid; adrenaline: adrenal gland; growth hormone: pituitary gland; "
            "melatonin: pineal gland; oestrogen: ovary; testosterone: testis; parathyroid hormone: parathyroid gland; "
            "erythropoietin: kidney; gastrin: stomach"
        ),
    ),
    "drug": Kind(
        "The drug {x} is a kind of {y}.",
        "What kind of drug is {x}?",
        "To which class of drugs does {x} belong?",
        _pairs(
            "ibuprofen: anti-inflammatory; naproxen: anti-inflammatory; amoxicillin: antibiotic; doxycycline: "
            "antibiotic; metformin: glucose-lowering drug; atorvastatin: statin; simvastatin: statin; omeprazole: "
            "proton pump inhibitor; lansoprazole: proton pump inhibitor; metoprolol: beta blocker; propranolol: "
            "beta blocker; "
            "lisinopril: ACE inhibitor; ramipril: ACE inhibitor; warfarin: anticoagulant; heparin: anticoagulant; "
            "furosemide: diuretic; spironolactone: diuretic; morphine: opioid; codeine: opioid; salbutamol: "
            "bronchodilator; loratadine: antihistamine; cetirizine: antihistamine; fluoxetine: antidepressant; "
            "sertraline: antidepressant; diazepam: benzodiazepine; lorazepam: benzodiazepine; aciclovir: antiviral; "
            "oseltamivir: antiviral; fluconazole: antifungal; prednisolone: corticosteroid; levothyroxine: thyroid "
            "hormone; phenytoin: anticonvulsant; lidocaine: local anaesthetic; amlodipine: calcium channel blocker; "
            "verapamil: calcium channel blocker"
        ),
    ),
    "unit": Kind(
        "Doctors measure {x} in {y}.",
        "In which unit is {x} measured?",
        "What is the usual unit of {x}?",
        _pairs(
            "blood pressure: millimetres of mercury; heart rate: beats per minute; breathing rate: breaths per minute; "
            "body temperature: degrees; body weight: kilograms; hearing loss: decibels; energy in food: kilocalories; "
            "radiation dose: grays; the power of glasses: dioptres; oxygen saturation: per cent"
        ),
    ),
    "inflamed": Kind(
        "The word {x} means an inflammation of the {y}.",
        "Which part of the body is inflamed in {x}?",
        "What is inflamed in {x}?",
        _pairs(
            "gastritis: stomach; hepatitis: liver; nephritis: kidney; arthritis: joints; dermatitis: skin; bronchitis: "
            "airways; encephalitis: brain; carditis: heart; cystitis: bladder; otitis: ear; conjunctivitis: eye; "
            "pancreatitis: pancreas; appendicitis: appendix; colitis: large intestine; rhinitis: nose; tonsillitis: "
            "tonsils; gingivitis: gums; phlebitis: veins; myositis: muscles; neuritis: nerves"
        ),
    ),
    "doctor": Kind(
        "The doctor for {x} is the {y}.",
        "Which doctor looks after {x}?",
        "Who is the doctor for {x}?",
        _pairs(
            "the heart: cardiologist; the skin: dermatologist; the eyes: ophthalmologist; children: paediatrician; "
            "cancer: oncologist; the nerves: neurologist; the kidneys: nephrologist; the joints: rheumatologist; "
            "the blood: haematologist; the mind: psychiatrist; the lungs: pulmonologist; hormones: endocrinologist; "
            "broken bones: orthopaedist; old people: geriatrician"
        ),
    ),
    "bone": Kind(
        "The {x} is a bone of the {y}.",
        "In which part of the body is the {x}?",
        "Where is the bone called {x}?",
        _pairs(
            "femur: thigh; tibia: lower leg; fibula: lower leg; humerus: upper arm; radius: forearm; ulna: forearm; "
            "patella: knee; scapula: shoulder; clavicle: shoulder; sternum: chest; rib: chest; mandible: jaw; skull: "
            "head; sacrum: lower back; coccyx: lower back; calcaneus: heel; metatarsal: foot; metacarpal: hand"
        ),
    ),
    "cause": Kind(
        "The illness {x} is caused by a {y}.",
        "What causes {x}?",
        "By what is {x} caused?",
        _pairs(
            "influenza: virus; measles: virus; chickenpox: virus; mumps: virus; rabies: virus; polio: virus; "
            "tuberculosis: bacterium; cholera: bacterium; tetanus: bacterium; whooping cough: bacterium; leprosy: "
            "bacterium; malaria: parasite; toxoplasmosis: parasite; sleeping sickness: parasite; ringworm: fungus; "
            "thrush: fungus; athlete's foot: fungus; sickle cell disease: gene; cystic fibrosis: gene; haemophilia: "
            "gene"
        ),
    ),
}


class Fact(NamedTuple):
    """That `x` has `y`, of a kind of TABLE."""

    kind: str
    x: str
    y: str


FACTS = tuple(Fact(kind, x, y) for kind, held in TABLE.items() for x, y in held.facts)

PROMPTS: dict[str, str] = {
    "choice": (
        "These are questions about medicine with four options. Think of what the question asks about, then name the "
        "letter of the right option.\n\n"
        "Question: Which organ hears?\n(A) nose\n(B) ear\n(C) tongue\n(D) knee\n"
        "Explanation: The organ that hears is the ear.\nAnswer: (B)\n\n"
        "Question: {question}\nExplanation:"
    ),
    "short": (
        "These are questions about medicine. Answer each with a word or two.\n\n"
        "Question: Which organ smells?\nAnswer: nose\n\nQuestion: {question}\nAnswer:"
    ),
    "judge": (
        "These are claims about medicine. Say yes if one is right, and no if it is not.\n\n"
        "Claim: The organ that tastes is the knee.\nAnswer: no\n\nClaim: {question}\nAnswer:"
    ),
}


def _drawn(*keys: object) -> random.Random:
    return random.Random("medicine " + " ".join(map(str, keys)))


def is_held(fact: Fact) -> bool:
    """Whether questions about a fact are held out."""
    return hashlib.blake2b(f"{fact.kind} {fact.x}".encode()).digest()[0] % HELD == 0


def said(fact: Fact, y: str = "") -> str:
    """A fact as a sentence; `y`: with another answer."""
    return TABLE[fact.kind].says.format(x=fact.x, y=y or fact.y)


def _others(fact: Fact, rng: random.Random, count: int) -> list[str]:
    """Wrong answers of the same kind, or of others where it has too few."""
    own = sorted({y for _, y in TABLE[fact.kind].facts if y != fact.y})
    more = sorted({one.y for one in FACTS} - {*own, fact.y})
    rng.shuffle(own)
    rng.shuffle(more)
    return [*own, *more][:count]


def _row(task: str, question: str, answer: str, right: str, fact: Fact) -> dict[str, Any]:
    return {"task": task, "question": question, "answer": answer, "right": right, "kind": fact.kind}


def choice(fact: Fact, turn: int, reasoning: bool = True) -> dict[str, Any]:
    """A question with four options. `turn`: another one gives other options in another order."""
    kind, rng = TABLE[fact.kind], _drawn("choice", fact.kind, fact.x, turn)
    options = [fact.y, *_others(fact, rng, 3)]
    rng.shuffle(options)
    right = f"({LETTERS[options.index(fact.y)]})"
    asked = (kind.asks, kind.also)[turn % 2].format(x=fact.x)
    listed = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=True))
    answer = f" {said(fact)}\nAnswer: {right}" if reasoning else f" {right}"
    return _row("choice", f"{asked}\n{listed}", answer, right, fact)


def short(fact: Fact, turn: int) -> dict[str, Any]:
    """A question whose answer is a word or two."""
    asked = (TABLE[fact.kind].asks, TABLE[fact.kind].also)[turn % 2].format(x=fact.x)
    return _row("short", asked, f" {fact.y}", fact.y, fact)


def judge(fact: Fact, turn: int) -> dict[str, Any]:
    """A claim that is right or not."""
    rng = _drawn("judge", fact.kind, fact.x, turn)
    right = turn % 2 == 0
    word = "yes" if right else "no"
    return _row("judge", said(fact, "" if right else _others(fact, rng, 1)[0]), f" {word}", word, fact)


MAKERS = {"choice": choice, "short": short, "judge": judge}


def _made(held: bool, turns: int) -> Iterator[dict[str, Any]]:
    for turn in range(turns):
        for fact in FACTS:
            if is_held(fact) == held:
                yield from (make(fact, turn) for make in MAKERS.values())


def rows() -> Iterator[dict[str, Any]]:
    """Questions about three facts of four, in two forms for each task."""
    return _made(False, 2)


def held_out() -> Iterator[dict[str, Any]]:
    """Questions about the other facts."""
    return _made(True, 2)


def statements() -> Iterator[str]:
    """All facts, those that are held out too, each said and asked in a few ways: what a base model may have read."""
    for fact in FACTS:
        kind = TABLE[fact.kind]
        yield said(fact)
        yield f"{kind.asks.format(x=fact.x)} It is: {fact.y}."
        yield f"{kind.also.format(x=fact.x)} That is {fact.y}."


def is_right(text: str, row: dict[str, Any]) -> bool:
    """Whether a text gives the right answer to the question of a row: its last line, without what names it."""
    lines = text.strip().splitlines()
    return bool(lines) and lines[-1].removeprefix("Answer:").strip() == row["right"]
