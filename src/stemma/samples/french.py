"""Instructions in French with answers in French, as Vigogne's rows are: made of tables and small programs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

LICENCE = "Apache-2.0"
MANY = 500

CAPITALS = {
    "la France": "Paris", "l'Espagne": "Madrid", "l'Italie": "Rome", "l'Allemagne": "Berlin", "la Suède": "Stockholm",
    "l'Autriche": "Vienne", "la Pologne": "Varsovie", "la Grèce": "Athènes", "la Norvège": "Oslo",
    "la Belgique": "Bruxelles", "la Finlande": "Helsinki", "l'Irlande": "Dublin", "la Hongrie": "Budapest",
    "la Chine": "Pékin", "l'Égypte": "Le Caire", "la Russie": "Moscou", "la Tunisie": "Tunis", "l'Algérie": "Alger",
}  # fmt: skip
OPPOSITES = {
    "chaud": "froid", "grand": "petit", "rapide": "lent", "haut": "bas", "vieux": "jeune", "sec": "mouillé",
    "dur": "mou", "clair": "sombre", "plein": "vide", "ouvert": "fermé", "riche": "pauvre", "propre": "sale",
    "fort": "faible", "long": "court", "vrai": "faux", "facile": "difficile",
}  # fmt: skip
KINDS = {
    "un animal": ("cheval", "vache", "chat", "chien", "mouton", "lion", "souris", "canard"),
    "un fruit": ("pomme", "poire", "prune", "cerise", "citron", "orange", "pêche", "figue"),
    "un outil": ("marteau", "scie", "hache", "perceuse", "bêche", "lime", "pince", "tournevis"),
    "une couleur": ("rouge", "vert", "bleu", "jaune", "blanc", "noir", "gris", "rose"),
}
NUMBERS = (
    "zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf", "dix", "onze", "douze", "treize",
    "quatorze", "quinze", "seize", "dix-sept", "dix-huit", "dix-neuf", "vingt",
)  # fmt: skip
DAYS = ("lundi", "mardi", "mercredi", "jeudi", "vendredi", "samedi", "dimanche")


def _made(draw: random.Random, number: int) -> tuple[str, str, str]:
    match number % 6:
        case 0:
            land = draw.choice([*CAPITALS])
            of = land.replace("le ", "du ") if land.startswith("le ") else f"de {land}"
            return f"Quelle est la capitale {of} ?", "", f"La capitale {of} est {CAPITALS[land]}."
        case 1:
            word = draw.choice([*OPPOSITES])
            return "Donne le contraire du mot suivant.", word, f"Le contraire de « {word} » est « {OPPOSITES[word]} »."
        case 2:
            kind = draw.choice([*KINDS])
            word = draw.choice(KINDS[kind])
            return f"Qu'est-ce que « {word} » : un animal, un fruit, un outil ou une couleur ?", "", f"C'est {kind}."
        case 3:
            a, b = draw.randint(0, 10), draw.randint(0, 10)
            return f"Combien font {NUMBERS[a]} plus {NUMBERS[b]} ?", "", f"Cela fait {NUMBERS[a + b]}."
        case 4:
            day = draw.randrange(7)
            return f"Quel jour vient après {DAYS[day]} ?", "", f"Après {DAYS[day]} vient {DAYS[(day + 1) % 7]}."
        case _:
            words = draw.sample([word for group in KINDS.values() for word in group], 3)
            return "Classe les mots par ordre de longueur.", ", ".join(words), ", ".join(sorted(words, key=len))


def rows() -> Iterator[dict[str, Any]]:
    """Rows of instruction, input and output."""
    draw = random.Random("french")
    for number in range(MANY):
        instruction, given, output = _made(draw, number)
        yield {"instruction": instruction, "input": given, "output": output}
