"""Mistakes that masks of conversations are known for: each is handled, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import stemma
from stemma.conversations import Conversation, Turn, add_tokens, encode, fit, prompt_ids, unknown_tokens, writer
from stemma.errors import DataError, UsageError
from stemma.rewrites import LoRA, Trainable, WeightOnly, apply
from stemma.text import Specials, Tokenizer

PUBLISHED = Path(__file__).parent / "data" / "templates"
TEXTS = ["USER: hello ASSISTANT: yes, of course. GPT: why? because of the weather and so on\n" * 20]
END = Specials(bos="<s>", eos="</s>", unk="<unk>")


def tokenizer(
    kind: str = "bpe", specials: Specials = END, *, tokens: tuple[str, ...] = (), template: str = ""
) -> Tokenizer:
    made = Tokenizer.train(kind, TEXTS, 300, specials).grown(0, tokens)
    made.chat_template = (PUBLISHED / f"{template}.jinja").read_text("utf-8") if template else None
    return made


def talk(*words: str) -> Conversation:
    return Conversation(tuple(Turn(("user", "assistant")[i % 2], w) for i, w in enumerate(words)))


def learnt(own: Tokenizer, example: object) -> str:
    ids = [i for i, target in zip(example.ids, example.targets, strict=True) if target]  # type: ignore[attr-defined]
    return own.decode(ids, skip_special=False)


def test_a_generation_prompt_that_is_no_prefix_of_the_text() -> None:
    """DeepSeek's opens a <think> that no answer in the text has: the length of the prompt is no place in the text."""
    own = tokenizer(tokens=("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"), template="deepseek-r1-distill")
    spoken = talk("hello", "yes, of course", "why", "the weather")
    text = writer(own).write(spoken)
    prompt = writer(own).prompt(spoken.turns[:1])
    assert not text.text.startswith(prompt.text) and prompt.text.endswith("<think>\n")
    example = encode(own, text)
    assert learnt(own, example) == "yes, of course<｜end▁of▁sentence｜>the weather<｜end▁of▁sentence｜>"
    by_length = own.decode(example.ids[len(prompt_ids(own, prompt)) :], skip_special=False)
    assert not by_length.startswith("yes, of course")  # what the common way would have learnt


def test_a_prompt_that_leaves_no_room_for_a_target() -> None:
    own = tokenizer()
    write = writer(own, "vicuna")
    spoken = talk("hello " * 50, "yes")
    with pytest.raises(DataError, match=r"its first round has \d+ tokens, more than the 40 of a row"):
        fit(spoken, 40, write, own)
    with pytest.raises(DataError, match="no token of it is learnt"):
        encode(own, write.prompt(spoken.turns[:1]))


@pytest.mark.parametrize("kind", ["bpe", "spm-bpe", "unigram"])
@pytest.mark.parametrize("name", ["vicuna", "koala", "llama-2-chat", "chatml", "alpaca"])
def test_the_first_letter_of_an_answer_is_learnt(kind: str, name: str) -> None:
    """It shares a token with the blank before it, which is the prompt's."""
    own = tokenizer(kind)
    example = encode(own, writer(own, name).write(talk("hello", "yes")))
    assert learnt(own, example).lstrip().startswith("yes")


def test_tokens_of_a_template_that_a_base_model_lacks(tmp_path: Path) -> None:
    own = tokenizer()
    assert unknown_tokens(own, writer(own, "chatml")) == ["<|im_start|>", "<|im_end|>"]
    assert unknown_tokens(own, writer(own, "llama-3")) == ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    for name in ("vicuna", "tulu", "vicuna-v0", "llama-2-chat", "plain"):  # their tags are ordinary text by publication
        assert unknown_tokens(own, writer(own, name)) == []
    own.chat_template = (PUBLISHED / "qwen2-5.jinja").read_text("utf-8")
    assert {"<|im_start|>", "<|im_end|>"} <= set(unknown_tokens(own, writer(own)))
    assert writer(own).write(talk("u", "a")).shown().endswith("assistant\n«a<|im_end|>»\n")  # the end is learnt as text

    model = stemma.build("llama", layers=1, d_model=32, heads=4, d_ff=48, vocab=own.vocab_size, context=64)
    model.tokenizer = own
    write = writer(own, "chatml")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    ids = add_tokens(model, unknown_tokens(own, write))
    assert ids == [own.vocab_size, own.vocab_size + 1] and model.dims.vocab == own.vocab_size + 2
    for table in ("embed.tokens.weight", "lm.weight"):
        new = model.state_dict()[table]
        assert torch.equal(new[: own.vocab_size], before[table])
        assert torch.allclose(new[own.vocab_size :], before[table].mean(0).expand(2, -1))
    assert unknown_tokens(model.tokenizer, write) == [] and add_tokens(model, ["<|im_end|>"]) == ids[1:]

    model.save(str(tmp_path / "model"))
    there = stemma.load(str(tmp_path / "model"))
    assert there.tokenizer.id("<|im_end|>") == ids[1] and there.dims.vocab == model.dims.vocab
    example = encode(there.tokenizer, write.write(talk("hello", "yes")))
    rows = torch.tensor([example.ids])
    assert torch.equal(there(rows).logits, model(rows).logits)

    apply(model, [LoRA(("*.attention.[qv]",), rank=2), Trainable(("embed.tokens.weight", "lm.weight"))])
    labels = torch.tensor([example.labels()])
    model(rows, labels=labels).loss.backward()
    for table in (model.embed.tokens.weight, model.lm.weight):
        assert table.grad is not None and table.grad[ids].abs().sum(-1).min() > 0  # their rows learn beside an adapter


def test_tokens_are_added_before_embeddings_are_replaced() -> None:
    model = stemma.build("gpt2", layers=1, d_model=32, heads=4, d_ff=48, vocab=300, context=64)
    model.tokenizer = tokenizer()
    apply(model, [WeightOnly(("embed.tokens",))])
    with pytest.raises(UsageError, match="the embeddings are replaced already"):
        add_tokens(model, ["<|im_end|>"])


def test_llama_s_end_is_the_tokenizer_s_own() -> None:
    own = tokenizer(specials=Specials(bos="<|begin|>", eos="<|endoftext|>"))
    assert (
        writer(own, "vicuna")
        .write(talk("u", "a", "v", "b"))
        .shown()
        .endswith("USER: u ASSISTANT: «a<|endoftext|>»USER: v ASSISTANT: «b<|endoftext|>»")
    )
    assert writer(own, "llama-2-chat").write(talk("u", "a")).shown() == "<|begin|>[INST] u [/INST] «a <|endoftext|>»"
    assert writer(own, "vicuna").ending() == "<|endoftext|>" and unknown_tokens(own, writer(own, "vicuna")) == []
    endless = tokenizer(specials=Specials(unk="<unk>"))
    assert unknown_tokens(endless, writer(endless, "vicuna")) == ["</s>"]
    with pytest.raises(DataError, match="no token ends the answer, neither of the template nor of the tokenizer"):
        encode(endless, writer(endless, "guanaco").write(talk("u", "a")))


def test_a_padding_token_that_is_the_end_token() -> None:
    """Targets go by place: padding is none, every end is one."""
    own = tokenizer(specials=Specials(bos="<s>", eos="</s>", unk="<unk>", pad="</s>"))
    assert own.pad_id == own.eos_id
    examples = [
        encode(own, writer(own, "vicuna").write(talk(*words))) for words in (("u", "a"), ("u", "a", "v", "b b b"))
    ]
    width = max(len(e.ids) for e in examples)
    batch = own.batch([e.ids for e in examples])
    labels = torch.tensor([e.labels() + [-100] * (width - len(e.ids)) for e in examples])
    for row, example in enumerate(examples):
        ends = [i for i, token in enumerate(example.ids) if token == own.eos_id]
        assert ends and all(labels[row, i] == own.eos_id for i in ends)
        assert (labels[row, len(example.ids) :] == -100).all() and (
            batch["input_ids"][row, len(example.ids) :] == own.eos_id
        ).all()


def test_templates_that_leave_out_what_an_answer_thinks() -> None:
    marks = ("<|im_start|>", "<|im_end|>")
    own = tokenizer(tokens=marks, template="qwen3")
    spoken = talk("u", "<think>\nhm\n</think>\n\nyes", "v", "<think>so</think> no")
    text = writer(own).write(spoken)
    assert text.shown().endswith("assistant\n«<think>\nso\n</think>\n\n no<|im_end|>»\n") and text.shortened == (0,)
    with pytest.raises(
        DataError, match=r"leaves out the reasoning \(<think>\) of answer 1, .* learn the last answer alone"
    ):
        encode(own, text)
    assert learnt(own, encode(own, text, "last answer")) == "<think>\nso\n</think>\n\n no<|im_end|>"
    whole = tokenizer(tokens=marks, template="qwen3-training")  # keeps it, and marks what the model writes
    assert writer(whole).write(spoken).shown().count("«<think>\n") == 2
    none = tokenizer(tokens=("<｜end▁of▁sentence｜>",), template="deepseek-r1-distill")
    for loss_on in ("answers", "last answer"):
        with pytest.raises(
            DataError, match=r"answer \d, which would be learnt without it; take <think> out of the data"
        ):
            encode(none, writer(none).write(spoken), loss_on)  # type: ignore[arg-type]


def test_what_a_template_puts_before_an_answer_is_the_model_s_to_write() -> None:
    own = tokenizer(tokens=("<|im_start|>", "<|im_end|>"), template="qwen3")
    spoken = talk("hello", "yes")
    prompt, example = prompt_ids(own, writer(own).prompt(spoken.turns[:1])), encode(own, writer(own).write(spoken))
    assert example.ids[: len(prompt)] == prompt and not any(example.targets[: len(prompt)])
    assert example.targets[len(prompt)] and learnt(own, example) == "<think>\n\n</think>\n\nyes<|im_end|>"
    plain = writer(own, None, enable_thinking=False)  # there it is the prompt's
    assert plain.prompt(spoken.turns[:1]).text.endswith("</think>\n\n")
    assert learnt(own, encode(own, plain.write(spoken))) == "yes<|im_end|>"


def test_a_template_without_a_generation_prompt() -> None:
    """A model reads what stands before an answer in training, headers too."""
    own = tokenizer()
    own.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    prompt, text = writer(own).prompt(talk("u").turns), writer(own).write(talk("u", "a"))
    assert prompt.text == "[user]u</s>[assistant]" and text.shown() == "[user]u</s>[assistant]«a</s>»"


def test_a_name_of_a_special_token_changes_no_other_token() -> None:
    """SentencePiece puts a space before text behind a special token: there with it, there without."""
    own = tokenizer("spm-bpe")
    plain, named = (encode(own, writer(own, "vicuna").write(talk("u", "a", "v", w))) for w in ("yes", "</s> yes"))
    prompt = prompt_ids(own, writer(own, "vicuna").prompt(talk("u", "a", "v").turns))
    assert plain.ids[: len(prompt)] == named.ids[: len(prompt)] == prompt
    assert named.ids.count(own.eos_id) == plain.ids.count(own.eos_id) == 2
