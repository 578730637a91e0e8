"""Any family with any component that it accepts is trained, saved in whatever layout can express it, and reads back
equal; what it does not accept is refused before the first step."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

import stemma
from grid import CHANGES, COMPONENTS, SMALL, declared, life, text
from stemma.errors import UsageError
from stemma.nn.parts import Arch, Attention, Glorot, Heads, Rotary
from tiny import NETWORKS

SOME = ("llama", "bert", "t5", "palm", "gpt2", "chatglm2", "deberta")  # of each engine's corner one
ELSEWHERE = {"Dropout", "Attention", "Heads"}  # not components: their fields are rows of the grid, or rates
pytestmark = [
    pytest.mark.filterwarnings("ignore:the text gives:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*own layout:UserWarning"),
]


def test_no_component_is_missing_from_the_grid() -> None:
    hints = typing.get_type_hints(Arch)
    hints |= {f"attention.{k}": v for k, v in typing.get_type_hints(Attention).items()}
    hints |= {"heads.lm": typing.get_type_hints(Heads)["lm"]}
    hints["scaling"] = typing.get_type_hints(Rotary)["scaling"]
    tried = {type(value) for values in COMPONENTS.values() for value in values}
    tried |= {type(getattr(value, "scaling", None)) for value in COMPONENTS["arch.position"]}
    known = set().union(*map(declared, hints.values()))
    assert {kind.__name__ for kind in known - tried} == ELSEWHERE | {"Streams"}


def test_any_component_is_trained_and_saved(tmp_path: Path) -> None:
    """Every other component of the grid, each with another family."""
    data = text(tmp_path)
    cells = [(SOME[n % len(SOME)], *change) for n, change in enumerate(CHANGES) if n % 2]
    accepted = [life(*cell, data, tmp_path / str(n)) for n, cell in enumerate(cells)]
    assert sum(accepted) > 2 / 3 * len(cells)


@pytest.mark.slow
@pytest.mark.parametrize("name", [p.values[0] for p in NETWORKS if not p.marks])
def test_every_component_is_trained_and_saved(name: str, tmp_path: Path) -> None:
    data = text(tmp_path)
    assert sum(life(name, *change, data, tmp_path / str(n)) for n, change in enumerate(CHANGES)) > len(CHANGES) * 0.75


@pytest.mark.parametrize("position", ["Learned(padding=1)", "BlankLearned()", "BlankRotary()"])
def test_a_mask_decoder_counts_from_0(position: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="an EMDHead counts tokens from 0"):
        stemma.pretrain("deberta", out=tmp_path / "run", overrides=SMALL | {"arch.position": position}, quiet=True)
    assert not (tmp_path / "run").exists()


def test_vectors_are_drawn_too(tmp_path: Path) -> None:
    """XLNet's queries begin with a vector, of which Glorot's rule says nothing."""
    assert life("xlnet", "arch.init", Glorot(), text(tmp_path), tmp_path / "run")
