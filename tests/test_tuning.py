"""How tuned families were trained on, as values: what they carry, what is unpublished, and how they print."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from stemma import spec
from stemma.declare.tuning import WORDS, Stage
from stemma.errors import UsageError
from stemma.families import family, templates, tree
from stemma.families.declare import (
    RL,
    SFT,
    Instructions,
    LoRA,
    Preferences,
    RejectionSampling,
    RewardModel,
    SoftPrompt,
    Tuning,
    Turns,
)

TUNED = [name for name, f in tree().items() if f.tuning is not None]


def stages(name: str) -> Iterator[Stage]:
    tuning = family(name).tuning
    assert tuning is not None
    for stage in tuning.stages:
        yield stage
        yield from (s for s in (getattr(stage, "then", None), getattr(stage, "start", None)) if s is not None)


def test_there_are_tuned_families() -> None:
    assert len(TUNED) == 32


@pytest.mark.parametrize("name", TUNED)
def test_stages_survive_plain_data(name: str) -> None:
    tuning = family(name).tuning
    assert spec.from_dict(Tuning, spec.to_dict(tuning)) == tuning


@pytest.mark.parametrize("name", TUNED)
def test_what_differs_by_size_is_said_of_every_size(name: str) -> None:
    sizes = len(family(name).sizes)
    for stage in stages(name):
        values = [(stage, f.name) for f in dataclasses.fields(stage)]
        if isinstance(stage, SFT) and stage.adapter is not None:
            values += [(stage.adapter, "dropout")] if isinstance(stage.adapter, LoRA) else []
        for owner, field in values:
            value = getattr(owner, field)
            if field not in (
                "margins",
                "models",
                "mixture",
                "remembered",
                "feedback",
                "changes",
            ) and isinstance(value, tuple):
                assert len(value) == sizes, (name, field)
        assert all(len(value) == sizes for _, value in stage.changes if isinstance(value, tuple)), name


@pytest.mark.parametrize("name", TUNED)
def test_what_is_from_memory_is_a_field_that_is_set(name: str) -> None:
    for stage in stages(name):
        for path in stage.remembered:
            assert spec.get(stage, path) not in (None, ())


def test_published_numbers() -> None:
    """A value of each kind of stage, as the fact sheets have it."""
    found: dict[str, Any] = {name: list(stages(name)) for name in TUNED}
    (guanaco,) = found["qlora"]
    assert guanaco.loss_on == "everything" and guanaco.adapter.rank == 64 and guanaco.adapter.double
    assert found["med-palm"][0].adapter == SoftPrompt(100, 0.5)
    sft, reward, rl, start = found["instructgpt"]
    assert (sft.epochs, reward.size, reward.grouped, rl.ptx, rl.kl, start.pretraining_share) == (
        16,
        "gpt3-6.7b",
        True,
        27.8,
        0.02,
        0.1,
    )
    assert rl.gae is None and rl.lr is None and reward.lr == 9e-6  # GAE's lambda and the policy's rate are unpublished
    sft, reward, sampling, rl = found["llama2-chat"]
    assert sft.packed and reward.models == ("helpfulness", "safety") and sampling.samples is None and sampling.from_base
    assert rl.kl == (0.01, 0.01, 0.005) and rl.minibatch == 64
    assert [type(s) for s in found["tulu2"]] == [SFT, Preferences] and found["tulu2"][1].beta == 0.1
    assert [s.mixture[0].name for s in found["orca"]] == ["FLAN-5M", "FLAN-1M"]
    assert isinstance(found["webgpt"][-1], RejectionSampling) and isinstance(found["webgpt"][1], RewardModel)
    assert all(
        s == type(s)() or s == SFT("conversations") for s in (*found["gpt4"], *found["chatgpt"], *found["gemini"])
    )


def test_they_print_as_they_are_called() -> None:
    printed = {name: " -> ".join(family(name).tuning.labels) for name in TUNED}  # type: ignore[union-attr]
    assert printed["llama2-chat"] == "sft -> reward model -> rejection sampling -> rl"
    assert printed["qlora"] == printed["vigogne"] == "adapter" and printed["med-palm"] == "prompt"
    assert printed["u-palm"] == "pretraining" and printed["tulu2"] == "sft -> preferences"


def test_a_file_of_ones_own_may_name_stages_by_bare_words() -> None:
    assert Tuning(tuple(WORDS), "").labels == tuple(WORDS)  # type: ignore[arg-type]
    assert Tuning(("sft", RL()), "").stages == (SFT(), RL())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no stage 'dpo'; known: pretraining, sft"):
        Tuning(("dpo",), "")  # type: ignore[arg-type]


def written(template: Turns, *turns: str, system: str = "") -> str:
    """A conversation by a template, in the plainest way."""
    system = template.system.format(system or template.default)
    text = "" if template.inside else system
    for i, words in enumerate(turns):
        if i % 2:
            text += template.assistant.format(words)
        else:
            text += template.between if i else ""
            text += template.user.format((system if template.inside and i == 0 else "") + words)
    return text + (template.generation if len(turns) % 2 else "")


@pytest.mark.parametrize(
    ("template", "turns", "text"),
    [
        (templates.KOALA, ("u", "a", "v"), "BEGINNING OF CONVERSATION: USER: u GPT:a</s>USER: v GPT:"),
        (templates.TULU, ("u", "a", "v"), "<|system|>\ns\n<|user|>\nu\n<|assistant|>\na</s>\n<|user|>\nv\n<|assistant|>\n"),
        (templates.LLAMA2, ("u", "a", "v"), "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nu [/INST] a </s><s>[INST] v [/INST]"),
        (templates.VICUNA, ("u", "a", "v"), "s USER: u ASSISTANT: a</s>USER: v ASSISTANT:"),
        (templates.BELUGA, ("u",), "### System:\ns\n\n### User:\nu\n\n### Assistant:\n"),
        (templates.BELUGA_CODE, ("u",), "### System:\ns\n\n### User: u\n\n### Assistant:\n"),
        (templates.GUANACO, ("u", "a"), "### Human: u### Assistant: a"),
        (templates.PLAIN, ("u",), "u"),
    ],
)  # fmt: skip
def test_templates_write_what_their_publishers_wrote(template: Turns, turns: tuple[str, ...], text: str) -> None:
    assert written(template, *turns, system="s") == text


def test_alpacas_two_forms() -> None:
    whole, bare = templates.ALPACA.text, templates.ALPACA.bare
    assert whole.startswith("Below is an instruction that describes a task, paired with an input that provides further")
    assert whole.endswith("### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:")
    assert (
        bare.endswith("completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:")
        and "{input}" not in bare
    )
    with pytest.raises(UsageError, match="must hold"):
        Instructions("### Response:")
    with pytest.raises(UsageError, match="where the words stand"):
        Turns(user="USER:", assistant="{}", generation="")
