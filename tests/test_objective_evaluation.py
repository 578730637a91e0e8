"""What is evaluated: every document once, the same each time, however the training text is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stemma.families import goals
from stemma.families.declare import Text
from stemma.families.recipes import Sampling
from stemma.objectives import Cursor, Setting, objective
from test_objective_languages import Verses
from test_objectives import Words

TEXT = Text("unigram", pad_id=0, start_id=0)
NAMES = {"[MASK]": 5, "[sMASK]": 6, "[gMASK]": 7, "<PRE>": 8, "<SUF>": 9, "<MID>": 74, "<EOT>": 75, "[NLU]": 76, "[S2S]": 77, "[NLG]": 78}  # fmt: skip
GOALS: dict[str, Any] = {
    "clm": goals.CLM(),
    "mlm": goals.MLM(),
    "next": goals.MLM(pairs="next"),
    "order": goals.MLM(pairs="order"),
    "halves": goals.MLM(pairs="halves"),
    "rtd": goals.RTD("electra-small-generator", pairs="halves"),
    "spans": goals.Spans(),
    "infill": goals.Infill(cut="tokens"),
    "blanks": goals.Blanks(spans=0.5, sentences=0.2, suffix=0.3),
    "tlm": goals.TLM(),
    "translation": goals.Translation("en", "de"),
    "distillation": goals.Distillation("bert-base-uncased"),
    "relations": goals.AttentionDistillation("bert-base-uncased"),
    "contrastive": goals.Contrastive(group=5),
    "plm": goals.PLM(targets=6, window=16, reuse=8, memory=16),
    "mixed": goals.MixedMLM(),
    "prefix": goals.PrefixLM(),
    "corruption": goals.Corruption(),
    "deshuffle": goals.Deshuffle(),
    "denoisers": goals.Denoisers(),
    "denoise": goals.Denoise(),
    "fragment": goals.Fragment(),
}


class Every(Words):
    """A tokenizer with every role and name."""

    kind = "wordpiece"

    def __init__(self) -> None:
        super().__init__(pad=0, bos=1, cls=1, eos=2, sep=2, mask=3, unk=4)
        self.special_ids |= set(NAMES.values())

    def id(self, name: str) -> int | None:
        return NAMES.get(name)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", GOALS)
def test_sampling_does_not_change_what_is_evaluated(name: str, mixed: bool) -> None:
    """Languages of unequal size, evened out in training; held-out text is read whole nevertheless."""
    view = Verses(40, low=3, high=30)

    def rows(sampling: Sampling) -> list[tuple[Any, Cursor]]:
        made = objective(GOALS[name], Setting(Every(), TEXT, 32, 1, mixed, sampling=sampling, rows=4))
        return list(made.examples(view, once=True))

    plain = rows(Sampling())
    assert plain
    for unit in ("document", "row", "batch"):
        for limit in (0.0, 0.5):
            found = rows(Sampling(0.3, limit, unit))  # type: ignore[arg-type]
            assert len(found) == len(plain)
            for (a, _), (b, _) in zip(found, plain, strict=True):
                assert all(np.array_equal(a[k], b[k]) for k in b)
