"""What published chat models add to tuning: Ghost Attention's data, and noise on embeddings (NEFTune)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from stemma.conversations import Conversation, Turn, ghost, writer
from stemma.declare.tasks import ChatTask, Ghost
from stemma.errors import DataError, UsageError
from stemma.nn.embeddings import Embed
from stemma.nn.inputs import Inputs
from stemma.nn.parts import Dims
from stemma.runs.metrics import read_metrics
from stemma.tasks.base import reader
from stemma.text import Specials, Tokenizer
from stemma.train import verify_resume
from stemma.tuning import tune

WORDS = ("who is it", "a king", "and where", "in a castle", "since when", "long ago")


def talk(*words: str, system: str = "") -> Conversation:
    head = (Turn("system", system),) if system else ()
    return Conversation((*head, *(Turn(("user", "assistant")[i % 2], w) for i, w in enumerate(words))))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(
        "bpe", [*WORDS, "be brief"] * 9, 300, Specials(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>")
    )


# ---------------------------------------------------------------- Ghost Attention


def test_ghost_attention_in_words() -> None:
    """Section 3.3: drawn with the instruction before every user's words, learnt with it before the first, and the loss
    of all earlier turns is 0."""
    spoken = talk(*WORDS)
    read: list[list[str]] = []

    def answer(so_far: Conversation) -> str:
        read.append([turn.content for turn in so_far.turns])
        return f"answer {len(read)}"

    made = ghost.sampled(spoken, "Speak as a cat.", answer)
    assert read == [
        ["Speak as a cat.\n\nwho is it"],
        ["Speak as a cat.\n\nwho is it", "answer 1", "Speak as a cat.\n\nand where"],
        [
            "Speak as a cat.\n\nwho is it",
            "answer 1",
            "Speak as a cat.\n\nand where",
            "answer 2",
            "Speak as a cat.\n\nsince when",
        ],
    ]
    assert made == talk("Speak as a cat.\n\nwho is it", "answer 1", "and where", "answer 2", "since when", "answer 3")
    assert (
        ghost.everywhere(spoken, "!").turns[4].content == "!\n\nsince when"
        and spoken.answers == ghost.everywhere(spoken, "!").answers
    )
    with pytest.raises(DataError, match="nothing was answered to turn 1"):
        ghost.sampled(spoken, "Speak as a cat.", lambda _: " ")
    in_place = ghost.sampled(spoken, "Speak as a cat.", answer, system=True)
    assert in_place.turns[:2] == (Turn("system", "Speak as a cat."), Turn("user", "who is it"))


def test_what_a_reader_learns_of_it(tokenizer: Tokenizer) -> None:
    row = {"messages": talk(*WORDS, system="be brief").messages}
    task = ChatTask(template="guanaco", ghost=Ghost())
    shown = reader(task, tokenizer, 400, "decoder").shown(row)
    assert shown == (
        "### Human: be brief\n\nwho is it### Assistant: a king### Human: and where### Assistant: in a castle"
        "### Human: since when### Assistant: «long ago</s>»"
    )
    inside = reader(ChatTask(template="llama-2-chat", ghost=Ghost(system=True)), tokenizer, 400, "decoder").shown(row)
    assert inside.startswith("<s>[INST] <<SYS>>\nbe brief\n<</SYS>>\n\nwho is it [/INST]") and inside.count("«") == 1
    reads = reader(task, tokenizer, 400, "decoder")
    with pytest.raises(DataError, match="it has no system message, and Ghost Attention needs an instruction"):
        reads.check({"messages": talk("u", "a").messages})


def test_instructions_are_drawn_by_the_words_alone() -> None:
    many = Ghost(("be kind", "be brief", "be bold"), together=2)
    talks = [talk(f"u {i}", "a") for i in range(60)]
    drawn = [ghost.learnt(t, many).turns[0].content.partition("\n\n")[0] for t in talks]
    assert drawn == [ghost.learnt(t, many).turns[0].content.partition("\n\n")[0] for t in talks]
    assert {d.count("be") for d in drawn} == {1, 2} and all(any(i in d for d in drawn) for i in many.instructions)
    assert ghost.learnt(talk("u", "a", system="own"), many).turns[0].content == "own"  # a system message stays
    with pytest.raises(UsageError, match="together=3 is more than the 2 instructions"):
        Ghost(("a", "b"), together=3)
    with pytest.raises(UsageError, match="leave out loss_on=everything"):
        ChatTask(loss_on="everything", ghost=Ghost())
    assert "ghost" not in repr(stemma.spec.to_dict(ChatTask()))  # plans without it stay as they were


# ---------------------------------------------------------------- NEFTune


def test_noise_is_that_of_transformers() -> None:
    """Uniform within alpha / sqrt(L d), in training only."""
    from transformers.integrations.neftune import neftune_post_forward_hook

    ours = Embed(Dims(16, 1, 2, 32, 50, 32), scale=False)
    theirs = torch.nn.Embedding(50, 16)
    theirs.load_state_dict(ours.tokens.state_dict())
    theirs.neftune_noise_alpha = ours.noise = 5.0
    theirs.register_forward_hook(neftune_post_forward_hook)
    ids = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(0))
    for module in (ours, theirs):
        module.train()
    torch.manual_seed(3)
    noisy = ours(Inputs.of(ids), None)
    torch.manual_seed(3)
    assert torch.allclose(noisy, theirs(ids), atol=1e-7)
    plain = ours.tokens(ids)
    assert 0.9 * 5 / (7 * 16) ** 0.5 < (noisy - plain).abs().max() <= 5 / (7 * 16) ** 0.5
    assert torch.equal(ours.eval()(Inputs.of(ids), None), plain)


def test_a_run_with_noise_and_ghosts_is_exact(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = stemma.build("llama", layers=1, d_model=32, heads=4, d_ff=48, vocab=tokenizer.vocab_size, context=64)
    model.tokenizer = tokenizer
    model.save(str(tmp_path / "start"))
    rows = tmp_path / "rows.jsonl"
    talks = [talk(*WORDS[: 2 + 2 * (i % 3)], system=f"be brief {i}") for i in range(24)]
    rows.write_text("".join(json.dumps({"messages": t.messages}) + "\n" for t in talks), "utf-8")

    def run(name: str, noise: float) -> Any:
        changes = {"recipe.lr": 3e-3, "recipe.batch": 128, "train.val_fraction": 0.2, "recipe.neftune": noise}
        settings = {"template": "guanaco", "ghost": Ghost()}
        out = tmp_path / name
        return tune("chat", start=str(tmp_path / "start"), data=str(rows), out=out, budget="4 steps", settings=settings, overrides=changes, quiet=True)  # fmt: skip

    plain, noisy = run("plain", 0.0), run("noisy", 5.0)
    assert verify_resume(tmp_path / "noisy", 2)["steps"] == 2  # noise follows from the step's seed
    losses = [[record["loss"] for record in read_metrics(tmp_path / name)] for name in ("plain", "noisy")]
    assert losses[0] != losses[1] and noisy.finished
    config = json.loads((tmp_path / "noisy" / "run.json").read_text())
    assert "neftune" in json.dumps(config) and "neftune" not in (tmp_path / "plain" / "run.json").read_text()
    assert "Ghost" in json.dumps(config) or "ghost" in json.dumps(config)
    with torch.no_grad():  # a model that is loaded has none
        ids = torch.arange(8)[None]
        there = stemma.load(tmp_path / "noisy").train()
        assert torch.equal(there(ids).logits, there(ids).logits)
    assert plain.summary["val"]["loss"] != noisy.summary["val"]["loss"]
    assert writer(tokenizer, "guanaco").ending() == ""
