"""System messages that ask a teacher for explanations of many kinds, and which queries get which of them.

There are 16, as in Orca (Mukherjee et al. 2023, arXiv:2306.02707, table 2), with the roles of its own and in this
project's words. FOR is its figure 6: from which of them the message of a query is drawn, by the sub-collection of FLAN
that the query is from. Those of CHOICES are for multiple choice alone.
"""

from __future__ import annotations

from stemma.errors import UsageError, did_you_mean

MESSAGES: dict[int, str] = {
    1: "",
    2: "Answer so fully that nobody has to look anything up afterwards.",
    3: "You get a task. Write a long answer that goes into the details.",
    4: "You are friendly, and you always say why. Picture a child of five who listens to you.",
    5: "You do what you are asked to do, exactly and well. Be as useful as you can.",
    6: "People come to you when they want to find something out. Give a full answer that needs no further reading.",
    7: "Somebody hands you a task. Carry it out as exactly as you can. Take small steps, and give a reason for each.",
    8: "Say what the task is and explain your answer. Where there are options to choose from, name the right one "
    "first, then tell what is wrong with each of the others. Use words that a child of five knows.",
    9: "Show how the definition led you to your answer.",
    10: "Say what the task is and explain your answer. Where there are options to choose from, name the right one "
    "first, then tell what is wrong with each of the others. Bring in what else you know if the question needs it.",
    11: "People come to you when they want to find something out. Here is a question of theirs. Answer it truthfully, "
    "take it in small steps, and give your reasons.",
    12: "Somebody hands you a task with instructions. Keep to them. Take it in small steps, and give your reasons.",
    13: "You teach. In easy steps, explain what the task at hand asks for, which rules it sets, and how these rules "
    "lead to the answer.",
    14: "You know all languages and translate between any two of them. In easy steps, explain what the task at hand "
    "asks for and which rules it sets. Then do it, and point out where you used the rules.",
    15: "Here are the definition of a task and an input. Cut the definition into its parts. For each part, make up an "
    "example that does what the part says, and tell why it does. Write it so:\nPart N: what this part says.\n"
    "Example: something that keeps to it, and why.",
    16: "People come to you when they want to find something out.",
}
FOR: dict[str, tuple[int, ...]] = {
    "cot": (6, 11, 16),
    "niv2": (1, 2, 5, 7, 9, 12, 13, 14, 15),
    "flan2021": (3, 4, 7, 8, 10),
    "t0": (1, 2, 3, 5, 7),
}
CHOICES = (8, 10)
# table 3: how many queries of each sub-collection there are in FLAN-5M
PUBLISHED: dict[str, int] = {"cot": 150_000, "niv2": 440_000, "flan2021": 2_500_000, "t0": 2_000_000}
OF_A_TASK = 300  # queries of one task of Natural Instructions v2 at most


def fitting(collection: str, choices: bool) -> tuple[int, ...]:
    """The numbers of the messages that a query may get. `choices`: it has options to choose from. Raises UsageError for
    an unknown sub-collection."""
    if collection not in FOR:
        hint = did_you_mean(collection, FOR)
        raise UsageError(f"no sub-collection is called {collection!r}; there are {', '.join(FOR)}{hint}")
    return tuple(number for number in FOR[collection] if choices or number not in CHOICES)
