"""Codex: GPT-3 trained on code, and its two children that write functions or describe them."""

from stemma.declare.family import About, Size, like
from stemma.declare.tuning import SFT, Pretraining, Tuning
from stemma.families import templates
from stemma.families.gpt import gpt3
from stemma.nn.parts import Dims

TITLE, PAPER = "Evaluating Large Language Models Trained on Code", "arXiv:2107.03374"
SMALL = "the widths are unpublished: these, which give its count outside of the embeddings, stand in"

codex = gpt3.evolve(
    "codex",
    {
        "text.runs": 25,
        "recipe.schedule.warmup": 175,
        "recipe.schedule.until": 1.0,
        "recipe.batch": None,
        "recipe.data": "159 GB of Python from 54M GitHub repositories, 100B tokens",
    },
    sizes={
        "codex-12m": Size(Dims(512, 4, 8, 2048, 50_281, 4096), {"recipe.lr": None}, "12M", note=SMALL),
        "codex-25m": Size(Dims(512, 8, 8, 2048, 50_281, 4096), {"recipe.lr": None}, "25M", note=SMALL),
        "codex-42m": Size(Dims(768, 6, 12, 3072, 50_281, 4096), {"recipe.lr": None}, "42M", note=SMALL),
        "codex-85m": Size(Dims(768, 12, 12, 3072, 50_281, 4096), {"recipe.lr": 6e-4}, "85M"),
        "codex-300m": Size(Dims(1024, 24, 16, 4096, 50_281, 4096), {"recipe.lr": 3e-4}, "300M"),
        "codex-679m": Size(Dims(1536, 24, 16, 6144, 50_281, 4096), {"recipe.lr": 2.5e-4}, "679M"),
        "codex-2.5b": Size(Dims(2560, 32, 32, 10_240, 50_281, 4096), {"recipe.lr": 1.6e-4}, "2.5B"),
        "codex-12b": Size(Dims(5120, 40, 40, 20_480, 50_281, 4096), {"recipe.lr": 1e-4}, "12B"),
    },
    about=About(
        2021,
        TITLE,
        PAPER,
        weights="never published",
        note="GPT-3 trained on, with 24 more tokens for runs of spaces; its sizes are named by what they hold outside "
        "of the embeddings, and from 85M up these are GPT-3's (12 layers of 768 hold 85M, 24 of 1536 hold 679M)",
    ),
    tuning=Tuning(
        (
            Pretraining(
                "text",
                context=4096,
                tokens=1e11,
                changes=(("clean", "exact,code"),),
                stand_in="builtin:code",
                files="*.py",
                remembered=("context",),
            ),
        ),
        "unique Python files of less than 1 MB: none that look generated, with long lines (100 characters on average, "
        "1,000 at most) or with few letters and digits",
        result="HumanEval pass@1: 28.8 % at 12B, 13.2 % at 300M (recalled), 0 % of GPT-3; starting from GPT-3 gives no "
        "better loss in the end, and gets there sooner",
        stand_ins="the standard library in place of 159 GB; for unpublished rules, a share of letters and digits of "
        "25 % and words at the head of a file that tell that it was generated",
    ),
)


def _tuned(name: str) -> dict[str, Size]:
    """The sizes of a child, whose rates are a tenth of Codex's."""
    rates = {"85m": 6e-5, "300m": 3e-5, "679m": 2.5e-5, "2.5b": 1.6e-5, "12b": 1e-5}
    return {f"{name}-{n}": like(codex, f"codex-{n}", changes={"recipe.lr": rate}) for n, rate in rates.items()}


codex_s = codex.trained(
    "codex-s",
    {
        "recipe.schedule.warmup": 0,
        "recipe.data": "10,000 problems of competitions and 40,000 functions of projects with continuous integration, "
        "of which one of 100 samples passed the tests",
    },
    sizes=_tuned("codex-s"),
    about=About(
        2021,
        TITLE,
        PAPER,
        weights="never published",
        note="a tenth of Codex's rate; the loss is on the body alone",
    ),
    tuning=Tuning(
        (
            SFT(
                "completions",
                templates.PLAIN,
                loss_on="answers",
                stand_in="builtin:functions",
                remembered=("loss_on",),
            ),
        ),
        "correct functions that stand by themselves: signature and docstring, then the body",
        "none: what is asked and the answer are one file",
        result="HumanEval pass@1: 37.7 % at 12B, pass@100 77.5 %; of 100 samples the one with the highest mean "
        "log-probability is right more often than one at random",
        stand_ins="builtin:functions, functions of the standard library that need nothing of their module; no filter "
        "by tests",
    ),
)

codex_d = codex.trained(
    "codex-d",
    {
        "recipe.schedule.warmup": 0,
        "recipe.data": "Codex-S's functions: signature and body, then the docstring",
    },
    sizes=_tuned("codex-d"),
    about=About(
        2021,
        TITLE,
        PAPER,
        weights="never published",
        note="writes what code does; rate and number of passes are unpublished, Codex-S's rate stands in",
    ),
    tuning=Tuning(
        (
            SFT(
                "completions",
                templates.PLAIN,
                loss_on="answers",
                stand_in="builtin:docstrings",
                remembered=("loss_on",),
            ),
        ),
        "Codex-S's functions, with the docstring at the end",
        "none: what is asked and the answer are one file",
        result="ten samples a problem, graded by hand: somewhat below Codex-S's rate of correct code (recalled)",
        stand_ins="builtin:docstrings, functions of the standard library and what they do",
    ),
)
