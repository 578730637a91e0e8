"""What is evaluated: every document once, the same each time, however the training text is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stemma.declare import objectives as declared
from stemma.declare.family import Text
from stemma.declare.recipes import Sampling
from stemma.objectives import Cursor, Setting, objective
from test_objective_languages import Verses
from test_objectives import Words

TEXT = Text("unigram", pad_id=0, start_id=0)
NAMES = {"[MASK]": 5, "[sMASK]": 6, "[gMASK]": 7, "<PRE>": 8, "<SUF>": 9, "<MID>": 74, "<EOT>": 75, "[NLU]": 76, "[S2S]": 77, "[NLG]": 78}  # fmt: skip
GOALS: dict[str, Any] = {
    "clm": declared.CLM(),
    "mlm": declared.MLM(),
    "next": declared.MLM(pairs="next"),
    "order": declared.MLM(pairs="order"),
    "halves": declared.MLM(pairs="halves"),
    "rtd": declared.RTD("electra-small-generator", pairs="halves"),
    "spans": declared.Spans(),
    "infill": declared.Infill(cut="tokens"),
    "blanks": declared.Blanks(spans=0.5, sentences=0.2, suffix=0.3),
    "tlm": declared.TLM(),
    "translation": declared.Translation("en", "de"),
    "distillation": declared.Distillation("bert-base-uncased"),
    "relations": declared.AttentionDistillation("bert-base-uncased"),
    "contrastive": declared.Contrastive(group=5),
    "plm": declared.PLM(targets=6, window=16, reuse=8, memory=16),
    "mixed": declared.MixedMLM(),
    "prefix": declared.PrefixLM(),
    "corruption": declared.Corruption(),
    "deshuffle": declared.Deshuffle(),
    "denoisers": declared.Denoisers(),
    "denoise": declared.Denoise(),
    "fragment": declared.Fragment(),
}


class Every(Words):
    """A tokenizer with every role and name."""

    kind = "wordpiece"

    def __init__(self) -> None:
        super().__init__(pad=0, bos=1, cls=1, eos=2, sep=2, mask=3, unk=4)
        self.special_ids |= set(NAMES.values())

    def id(self, name: str) -> int | None:
        return NAMES.get(name)


DRAWN = [("document", 0.5), ("row", 0.0), ("batch", 0.5)]
MORE = [("document", 0.0), ("row", 0.5), ("batch", 0.0)]


@pytest.mark.parametrize("ways", [DRAWN, pytest.param(MORE, marks=pytest.mark.slow)], ids=["some", "others"])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", GOALS)
def test_sampling_does_not_change_what_is_evaluated(name: str, mixed: bool, ways: list[tuple[Any, float]]) -> None:
    """Languages of unequal size, evened out in training; held-out text is read whole nevertheless."""
    view = Verses(40, low=3, high=30)

    def rows(sampling: Sampling) -> list[tuple[Any, Cursor]]:
        made = objective(GOALS[name], Setting(Every(), TEXT, 32, 1, mixed, sampling=sampling, rows=4))
        return list(made.examples(view, once=True))

    plain = rows(Sampling())
    assert plain
    for unit, limit in ways:
        found = rows(Sampling(0.3, limit, unit))
        assert len(found) == len(plain)
        for (a, _), (b, _) in zip(found, plain, strict=True):
            assert all(np.array_equal(a[k], b[k]) for k in b)
