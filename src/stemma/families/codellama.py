"""Code LLaMA: LLaMA-2 trained on code, with infilling and on long texts; its Python and Instruct variants."""

from collections.abc import Mapping
from typing import Any

from stemma.declare.family import LLAMA_INFILL, About, Size
from stemma.declare.objectives import CLM, Infill
from stemma.declare.tuning import SFT, Pretraining, Source, Tuning
from stemma.families import templates
from stemma.families.llama import llama2
from stemma.nn.parts import Dims

TITLE, PAPER = "Code Llama: Open Foundation Models for Code", "arXiv:2308.12950"
THETA = 1e6  # of the rotation, after the stage on long texts
WIDTHS = {
    "7b": Dims(4096, 32, 32, 11_008, 32_016, 16_384),
    "13b": Dims(5120, 40, 40, 13_824, 32_016, 16_384),
    "34b": Dims(8192, 48, 64, 22_016, 32_000, 16_384, kv_heads=8),
    "70b": Dims(8192, 80, 64, 28_672, 32_016, 16_384, kv_heads=8),
}
COUNTS = {"7b": "6.7B", "13b": "13.0B", "34b": "33.7B", "70b": "69.0B"}
STEPS = (3_000, 10_000, 11_000)  # of the stage on long texts, at 7B, 13B and 34B
SECTIONS = "builtin:code@0.85#split=section,builtin:docs@0.15"
AGAIN = "builtin:coding@0.92,builtin:code@0.06#split=section,builtin:docs@0.02"
STAND_INS = (
    "the standard library, a function or a class a document, so that rows hold some whole (85 %), and docstrings "
    "(15 %) stand in for code, text about code and other text"
)


def _sizes(kind: str, changes: Mapping[str, Mapping[str, Any]], **widths: Any) -> dict[str, Size]:
    """The four sizes of a variant: what each changes, and other widths."""
    name, hub = (f"-{kind.lower()}", f"{kind}-") if kind else ("", "")
    return {
        f"codellama-{n}{name}": Size(
            widths.get(f"of_{n}", dims), changes.get(n, {}), COUNTS[n], hub=f"codellama/CodeLlama-{n}-{hub}hf"
        )
        for n, dims in WIDTHS.items()
    }


def _long(steps: tuple[int | None, ...], batch: tuple[int | None, ...]) -> Pretraining:
    """The stage on rows of 16,384 tokens, in which the rotation gets a larger base."""
    return Pretraining(
        "text",
        context=16_384,
        longer=4.0,
        lr=2e-5,
        steps=steps,
        batch=batch,
        changes=(("arch.position.base", THETA),),
        stand_in="builtin:code",
    )


codellama = llama2.evolve(
    "codellama",
    {
        "arch.position.base": THETA,
        "objective": Infill(rate=0.9, swapped=0.5),
        "text.infill": LLAMA_INFILL,
        "recipe.schedule.warmup": 1000,
        "recipe.schedule.floor": 1 / 30,
        "recipe.data": "500B tokens (70B: 1T): 85 % code, 8 % text about code, 7 % other text",
    },
    sizes=_sizes("", {"34b": {"objective": CLM(), "recipe.lr": 1.5e-4}, "70b": {"recipe.lr": 1.5e-4}}),
    about=About(
        2023,
        TITLE,
        PAPER,
        note="its weights start from LLaMA-2's; 16 more tokens, for infilling, where the vocabulary is 32,016; the "
        "recipe is that of the code stage, before the one on long texts",
    ),
    tuning=Tuning(
        (
            Pretraining(
                "text",
                mixture=(
                    Source("code", 0.85, epochs=2.03),
                    Source("text about code", 0.08, epochs=1.39),
                    Source("other text", 0.07, epochs=0.01),
                ),
                context=4096,
                batch=4_000_000,
                tokens=(5e11, 5e11, 5e11, 1e12),
                stand_in=SECTIONS,
            ),
            _long((*STEPS, None), (2_000_000, 2_000_000, 1_000_000, None)),
        ),
        "code, text about code and other text; then long texts, of which the batch at 70B is unpublished",
        result="HumanEval pass@1, greedy: 33.5, 36.0, 48.8 and 53.0 % at 7B, 13B, 34B and 70B; infilling costs less "
        "than a point; perplexity falls up to 100,000 tokens",
        stand_ins=f"{STAND_INS}; whole files for long texts, which are four times as long as the model's rows before",
    ),
)

codellama_python = codellama.evolve(
    "codellama-python",
    {
        "objective": CLM(),
        "text.infill": (),
        "recipe.lr": 1e-4,
        "recipe.data": "100B tokens: 75 % Python, 10 % other code, 10 % text about code, 5 % other text",
    },
    sizes=_sizes(
        "Python",
        {"70b": {"arch.position.base": 1e4}},
        of_7b=Dims(4096, 32, 32, 11_008, 32_000, 16_384),
        of_13b=Dims(5120, 40, 40, 13_824, 32_000, 16_384),
        of_70b=Dims(8192, 80, 64, 28_672, 32_016, 4096, kv_heads=8),
    ),
    about=About(
        2023,
        TITLE,
        PAPER,
        note="starts from Code LLaMA before its stage on long texts, which follows here (not at 70B); no infilling at "
        "any size; the vocabulary of 70B is recalled",
    ),
    tuning=Tuning(
        (
            Pretraining(
                "text",
                mixture=(
                    Source("Python", 0.75, epochs=3.69),
                    Source("other code", 0.1),
                    Source("text about code", 0.1),
                    Source("other text", 0.05),
                ),
                context=4096,
                batch=4_000_000,
                tokens=1e11,
                stand_in=SECTIONS,
            ),
            _long((*STEPS, None), (2_000_000, 2_000_000, 1_000_000, None)),
        ),
        "Python above all; then long texts (not at 70B)",
        result="HumanEval pass@1, greedy: 38.4, 43.3, 53.7 and 57.3 % at 7B, 13B, 34B and 70B",
        stand_ins=f"{STAND_INS}; start it from the first stage of codellama (RUN/stages/1)",
    ),
)

codellama_instruct = codellama.evolve(
    "codellama-instruct",
    {
        "recipe.lr": None,
        "recipe.schedule.warmup": 0,
        "recipe.batch": 524_288,
        "recipe.data": "LLaMA-2-Chat's last set, about 14,000 self-instructed questions with solutions that pass their "
        "tests, and 6 % code and 2 % other text again; 5B tokens",
    },
    sizes=_sizes(
        "Instruct",
        {"34b": {"objective": CLM()}, "70b": {"objective": CLM(), "arch.position.base": 1e4}},
        of_70b=Dims(8192, 80, 64, 28_672, 32_016, 4096, kv_heads=8),
    ),
    about=About(
        2023,
        TITLE,
        PAPER,
        note="starts from Code LLaMA, at 70B from Code LLaMA - Python; rate and schedule are unpublished",
    ),
    tuning=Tuning(
        (
            SFT(
                "conversations",
                (*[templates.LLAMA2] * 3, templates.CODELLAMA_70B),
                mixture=(
                    Source("LLaMA-2-Chat's, version 5"),
                    Source("self-instruct", examples=14_000),
                    Source("code", 0.06),
                    Source("other text", 0.02),
                ),
                context=4096,
                batch=524_288,
                tokens=5e9,
                remembered=("context",),
                changes=(("objective.task.texts", True),),
                stand_in=AGAIN,
            ),
        ),
        "conversations of LLaMA-2-Chat, self-instructed questions and solutions, code and text again",
        "LLaMA-2-Chat's; at 70B one of its own",
        result="HumanEval pass@1, greedy: 34.8, 42.7, 41.5 and 67.8 % at 7B, 13B, 34B and 70B",
        stand_ins="builtin:coding, requests for functions of the standard library by their docstring, 92 %; code, 6 %, "
        "and docstrings, 2 %, are read again as text",
    ),
    others=("codellama-python",),
)
