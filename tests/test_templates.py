"""Chat templates against their publishers: the strings, the ids, and in words what is learnt."""

from __future__ import annotations

import functools
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemma.conversations import Conversation, Turn, encode, prompt_ids, unknown_tokens, writer
from stemma.conversations.jinja import MARKER, forms
from stemma.conversations.targets import _placed
from stemma.conversations.templates import NAMES, TurnsWriter, jinja
from stemma.declare.tuning import Instructions
from stemma.errors import DataError
from stemma.text import Specials, Tokenizer
from stemma.text.chat import render

DATA = Path(__file__).parent / "data" / "templates"  # SOURCES there says whose they are
PUBLISHED = {path.stem: path.read_text("utf-8") for path in sorted(DATA.glob("*.jinja"))}
TEXTS = (
    "USER: hello ASSISTANT: yes, of course. ### Human: why? because of the weather\n" * 20,
    "[INST] it? :) 12\n\n" * 20,
)
SPECIALS = {"wordpiece": Specials(cls="[CLS]", sep="[SEP]", pad="[PAD]", unk="[UNK]", bos="<s>", eos="</s>")}


@functools.cache
def tokenizer(kind: str = "bpe", name: str | None = None) -> Tokenizer:
    """One of `kind`; of a published template, with its tokens and the template."""
    specials = SPECIALS.get(kind, Specials(bos="<s>", eos="</s>", unk="<unk>", pad="<pad>"))
    made = Tokenizer.train(kind, TEXTS, 330, specials)
    if name is None:
        return made.grown(0, ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"))
    tokens = (t for t in MARKER.findall(PUBLISHED[name]) if "think" not in t and "{" not in t and "'" not in t)
    made = made.grown(0, tuple(dict.fromkeys(tokens)))
    made.chat_template = PUBLISHED[name]
    return made


def talk(*words: str, system: str = "") -> Conversation:
    head = (Turn("system", system),) if system else ()
    return Conversation((*head, *(Turn(("user", "assistant")[i % 2], w) for i, w in enumerate(words))))


TALKS = [
    talk("u"), talk("u q", "a x"), talk(" u\n", "a ", "v", "b"), talk("hi", "yo", "ok"),
    talk("u", "<think>\nhm\n</think>\n\nyes", "v", "<think>hm</think> no"),
]  # fmt: skip


# ---------------------------------------------------------------- strings


def differences(templates: dict[str, str]) -> list[Any]:
    """Where our text of a template is not transformers', a refusal being a text too."""
    import transformers as hf

    own = tokenizer.__wrapped__("bpe")
    theirs = hf.PreTrainedTokenizerFast(
        tokenizer_object=own._core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    found = []
    for name, template in templates.items():
        own.chat_template = theirs.chat_template = template
        for spoken in [*TALKS, *(Conversation((Turn("system", "be brief"), *t.turns)) for t in TALKS)]:
            for asks in (False, True):
                try:
                    expected = theirs.apply_chat_template(spoken.messages, tokenize=False, add_generation_prompt=asks)
                except Exception:
                    expected = "refused"
                try:
                    text = own.apply_chat(spoken.messages, add_generation_prompt=asks)
                except DataError:
                    text = "refused"
                if text != expected:
                    found.append((name, spoken.messages, asks, text, expected))
    return found


def test_strings_are_transformers() -> None:
    assert len(PUBLISHED) >= 8 and not differences(PUBLISHED)


def shipped() -> dict[str, str]:
    """The templates in an installed trl, and those that an installed mistral-common generates."""
    found = {}
    if (spec := importlib.util.find_spec("trl")) and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0], "chat_templates")
        found |= {path.stem: path.read_text("utf-8") for path in sorted(folder.glob("*.jinja"))}
    if importlib.util.find_spec("mistral_common") and importlib.util.find_spec("jsonschema"):
        from mistral_common.integrations.chat_templates.template_generator import TemplateConfig, build_chat_template
        from mistral_common.tokens.tokenizers.base import TokenizerVersion

        for version in TokenizerVersion:
            for spm in (True, False):
                config = {"version": version, "spm": spm, "use_special_token_variables": True}
                if version.supports_model_settings:
                    config |= {"reasoning_effort_values": ("none", "high"), "reasoning_effort_default": "none"}
                if not spm or version.value in ("v1", "v2", "v3", "v7"):
                    found[f"mistral-{version.value}-{spm}"] = build_chat_template(TemplateConfig(**config))
    return found


@pytest.mark.slow
def test_strings_of_all_that_is_shipped_are_transformers() -> None:
    templates = shipped()
    if not templates:
        pytest.skip("needs trl or mistral-common")
    assert not differences(templates)
    own = tokenizer.__wrapped__("bpe")
    for name, template in templates.items():  # what is learnt is an answer's, or the template is refused
        names = (t for t in MARKER.findall(template) if "think" not in t and "{" not in t and "'" not in t)
        grown = own.grown(0, tuple(dict.fromkeys(names)))
        grown.chat_template = template
        try:
            text = writer(grown).write(talk("u q", "a x", "v", "b y"))
        except DataError as error:
            assert name.startswith(("idefics3", "smolvlm", "llava")), (name, error)  # contents are lists there
            continue
        for (begin, end), answer in zip(text.spans, ("a x", "b y"), strict=True):
            before, said, after = text.text[begin:end].partition(answer)
            assert said and len(after) <= 40 and "u q" not in before and "v" not in before.replace("level", ""), name


# golden, from each publisher's own code or text, of words with blanks around them
FRENCH = "Vous êtes un assistant IA qui suit extrêmement bien les instructions. Aidez autant que vous le pouvez."
CURIOUS = "A chat between a curious {0} and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the {0}'s questions."
SOURCES = {
    # tatsu-lab/stanford_alpaca@761dc5b, train.py: PROMPT_DICT, and the tokenizer's end token behind the output
    "alpaca": "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\n u \n\n### Response:« a </s>»",
    # lm-sys/FastChat@0e6d3e4, fastchat/conversation.py: vicuna_v1.1
    "vicuna": f"{CURIOUS.format('user')} USER:  u  ASSISTANT: « a </s>»USER:  v  ASSISTANT: « b </s>»",
    # the same: zero_shot (the version 0 format), whose separator is "\n### "
    "vicuna-v0": f"{CURIOUS.format('human')}\n### Human:  u \n### Assistant: « a \n###» Human:  v \n### Assistant: « b \n###»",
    # timdettmers/openassistant-guanaco, as artidoro/qlora@00e5ad2, qlora.py, loads it
    "guanaco": "### Human:  u ### Assistant: « a »### Human:  v ### Assistant: « b »",
    # young-geng/EasyLM@fe5b2c3, docs/koala.md
    "koala": "BEGINNING OF CONVERSATION: USER:  u  GPT:« a </s>»USER:  v  GPT:« b </s>»",
    # ShishirPatil/gorilla@dab51981, inference/gorilla_eval.py
    "gorilla": "###USER:  u ###ASSISTANT: « a »###USER:  v ###ASSISTANT: « b »",
    # the same, inference/serve: the conversation gorilla_v0, Vicuna's with a line end as its first separator
    "gorilla-cli": f"{CURIOUS.format('user')}\nUSER:  u \nASSISTANT: « a </s>»USER:  v \nASSISTANT: « b </s>»",
    # bofenghuang/vigogne@67ea8a2, vigogne/processors/alpaca.py, vigogne_chat_v2.py, vigogne_chat_v3.py
    "vigogne": "### System:\nCi-dessous se trouve une instruction qui décrit une tâche à accomplir. Rédigez une réponse qui répond de manière précise à la demande.\n\n### Instruction:\n u \n\n### Response:\n« a </s>»",
    "vigogne-chat-v2": f"<|system|>: {FRENCH}\n<|user|>:  u \n<|assistant|>: « a </s>»\n<|user|>:  v \n<|assistant|>: « b </s>»",
    "vigogne-chat-v3": f"[INST] <<SYS>>\n{FRENCH}\n<</SYS>>\n\n u  [/INST] « a </s>» [INST]  v  [/INST] « b </s>»",
    # allenai/open-instruct@e6c3044, open_instruct/dataset_transformation.py: CHAT_TEMPLATES
    "tulu": "<|user|>\n u \n<|assistant|>\n« a </s>»\n<|user|>\n v \n<|assistant|>\n« b </s>»",
    # meta-llama/llama@689c7f2, llama/generation.py: chat_completion strips
    "llama-2-chat": "<s>[INST] u [/INST] «a </s>»<s>[INST] v [/INST] «b </s>»",
    # meta-llama/llama3@a0940f9, llama/tokenizer.py: ChatFormat strips
    # facebookresearch/codellama, llama/generation.py: heads and words are encoded apart, each with a space in front
    "codellama-70b": " Source: system \n\n <step>  Source: user \n\n u<step>  Source: assistant\nDestination: user \n\n «a<step>»  Source: user \n\n v<step>  Source: assistant\nDestination: user \n\n «b<step>»",
    "llama-3": "<|start_header_id|>user<|end_header_id|>\n\nu<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n«a<|eot_id|>»<|start_header_id|>user<|end_header_id|>\n\nv<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n«b<|eot_id|>»",
    # openai/tiktoken, README and METADATA: the description of ChatML
    "chatml": "<|im_start|>user\n u <|im_end|>\n<|im_start|>assistant\n« a <|im_end|>»\n<|im_start|>user\n v <|im_end|>\n<|im_start|>assistant\n« b <|im_end|>»\n",
    # the card of StableBeluga2: its block, and its code
    "stable-beluga": "### User:\n u \n\n### Assistant:\n« a »### User:\n v \n\n### Assistant:\n« b »",
    "stable-beluga-code": "### User:  u \n\n### Assistant:\n« a »### User:  v \n\n### Assistant:\n« b »",
    "flan": " u </s>« a </s>» v </s>« b </s>»",
    "plain": " u « a » v « b »",
}  # fmt: skip


def test_historical_strings_are_their_publishers() -> None:
    assert SOURCES.keys() == NAMES.keys()
    for name, template in NAMES.items():
        spoken = talk(" u ", " a ") if isinstance(template, Instructions) else talk(" u ", " a ", " v ", " b ")
        assert writer(None, name).write(spoken).shown() == SOURCES[name], name
    # generation.py puts the system message before the first user's words, then strips both as one
    spoken = talk(" u ", "a", system=" s ")
    assert writer(None, "llama-2-chat").write(spoken).text == "<s>[INST] <<SYS>>\n s \n<</SYS>>\n\n u [/INST] a </s>"


# ---------------------------------------------------------------- what is learnt, in words

QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
SMOL = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
LEARNT = {
    "deepseek-r1-distill": "<s><｜User｜>u<｜Assistant｜>«a<｜end▁of▁sentence｜>»<｜User｜>v<｜Assistant｜>«b<｜end▁of▁sentence｜>»",
    "mistral-v3": "<s>[INST] u[/INST] «a</s>»[INST] v[/INST] «b</s>»",
    "mistral-v7": "<s>[INST] u[/INST] «a</s>»[INST] v[/INST] «b</s>»",
    "phi3": "<|user|>\nu<|end|>\n<|assistant|>\n«a<|end|>»\n<|user|>\nv<|end|>\n<|assistant|>\n«b<|end|>»\n</s>",
    "qwen2-5": f"<|im_start|>system\n{QWEN}<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n«a<|im_end|>»\n<|im_start|>user\nv<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n",
    # what the template puts between its prompt and the answer is the model's to write
    "qwen3": "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n«a<|im_end|>»\n<|im_start|>user\nv<|im_end|>\n<|im_start|>assistant\n«<think>\n\n</think>\n\nb<|im_end|>»\n",
    "qwen3-training": "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n«<think>\n\n</think>\n\na<|im_end|>»\n<|im_start|>user\nv<|im_end|>\n<|im_start|>assistant\n«<think>\n\n</think>\n\nb<|im_end|>»\n",
    "smollm2": f"<|im_start|>system\n{SMOL}<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n«a<|im_end|>»\n<|im_start|>user\nv<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n",
}  # fmt: skip


def test_what_is_learnt_in_words() -> None:
    found = {name: writer(tokenizer("bpe", name)).write(talk("u", "a", "v", "b")).shown() for name in PUBLISHED}
    assert found == LEARNT


def test_a_system_message_is_found_wherever_it_stands() -> None:
    """Mistral's third version puts it before the last user's words, its seventh in front."""
    spoken = talk("u", "a", "v", "b", system="be brief")
    shown = {name: writer(tokenizer("bpe", name)).write(spoken).shown() for name in ("mistral-v3", "mistral-v7")}
    assert shown["mistral-v3"] == "<s>[INST] u[/INST] «a</s>»[INST] be brief\n\nv[/INST] «b</s>»"
    assert shown["mistral-v7"].startswith("<s>[SYSTEM_PROMPT] be brief[/SYSTEM_PROMPT][INST] u[/INST] «a</s>»")


def test_generation_marks_are_followed_to_the_end_token() -> None:
    own = tokenizer.__wrapped__("bpe")
    turn = "{% for m in messages %}[{{ m.role }}]%s</s>\n{% endfor %}"
    for body, learnt in (
        ("{% if m.role == 'assistant' %}{% generation %}so: {{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}", "«so: a</s>»"),
        ("{{ m.content }}{% generation %}{% endgeneration %}", "«a</s>»"),
    ):  # fmt: skip
        own.chat_template = turn.replace("%s", body)
        assert writer(own).write(talk("u", "a")).shown() == f"[user]u</s>\n[assistant]{learnt}\n"


# ---------------------------------------------------------------- Mistral's ids

SPOKEN = [
    talk("hi", "yo", "ok"),
    talk("hi", "yo", "ok", system="be brief"),
    talk("é日😀", "y  z", "[INST] x [/INST] </s>"),  # tags in words are ordinary text
    talk("Hi there", "Hello."),
    talk(" u\n", "a", "v", "b\n\n- c", system="be\n"),
]
# the ids of mistral-common 1.13.1's own encoders for the first four
GOLDEN = {
    "mistral_instruct_tokenizer_240323.model.v3": [
        [1, 3, 12782, 4, 24702, 2, 3, 4382, 4],
        [1, 3, 12782, 4, 24702, 2, 3, 1115, 7585, 781, 781, 1261, 4],
        [
            1,
            3,
            2001,
            29910,
            31343,
            4,
            1105,
            29473,
            1454,
            2,
            3,
            1501,
            17057,
            29561,
            2086,
            1501,
            29516,
            17057,
            29561,
            2635,
            29481,
            29535,
            4,
        ],
        [1, 3, 16127, 1504, 4, 23325, 29491, 2],
    ],
    "mistral_instruct_tokenizer_241114.model.v7": [
        [1, 3, 12782, 4, 24702, 2, 3, 4382, 4],
        [1, 16, 1115, 7585, 17, 3, 12782, 4, 24702, 2, 3, 4382, 4],
        [
            1,
            3,
            2001,
            29910,
            31343,
            4,
            1105,
            29473,
            1454,
            2,
            3,
            1501,
            17057,
            29561,
            2086,
            1501,
            29516,
            17057,
            29561,
            2635,
            29481,
            29535,
            4,
        ],
        [1, 3, 16127, 1504, 4, 23325, 29491, 2],
    ],
}


def mistral(path: Path, folder: Path, template: str) -> Tokenizer:
    """The tokenizer in a file of mistral-common's."""
    shutil.copy(path, folder / ("tekken.json" if path.suffix == ".json" else "tokenizer.model"))
    own = Tokenizer.load(folder)
    own.chat_template = template
    return own


def ids(own: Tokenizer, spoken: Conversation) -> list[int]:
    """As a prompt, or to learn from, whichever the last turn makes it."""
    if spoken.turns[-1].role == "user":
        return prompt_ids(own, writer(own).prompt(spoken.turns))
    return encode(own, writer(own).write(spoken)).ids


def _models() -> list[Path]:
    found = importlib.util.find_spec("mistral_common")
    roots = list(found.submodule_search_locations or []) if found else []
    names = ("*.model.v*", "tekken*.json")
    return [path for root in roots for name in names for path in sorted((Path(root) / "data").glob(name))]


@pytest.mark.skipif(not _models(), reason="mistral-common is not installed")
def test_ids_are_mistral_s(tmp_path: Path) -> None:
    for path in _models():
        if path.name in GOLDEN:
            own = mistral(path, tmp_path, PUBLISHED[f"mistral-{path.suffix[1:]}"])
            assert [ids(own, spoken) for spoken in SPOKEN[:4]] == GOLDEN[path.name], path.name


@pytest.mark.slow
@pytest.mark.skipif(not _models() or not importlib.util.find_spec("jsonschema"), reason="needs mistral-common")
def test_ids_are_those_of_every_encoder_of_mistral(tmp_path: Path) -> None:
    """v1, v2, v3, v7 and tekken. An answer's blanks at its end are not compared: the encoders cut them off, and the
    templates of the same package do not."""
    from mistral_common.integrations.chat_templates.chat_templates import convert_tokenizer_to_chat_template
    from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    kinds = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}
    for path in _models():
        theirs = MistralTokenizer.from_file(str(path))
        (folder := tmp_path / path.name).mkdir()
        own = mistral(path, folder, convert_tokenizer_to_chat_template(path))
        for spoken in SPOKEN:
            asked = ChatCompletionRequest(messages=[kinds[t.role](content=t.content) for t in spoken.turns])
            if spoken.turns[-1].role == "user":
                expected = theirs.encode_chat_completion(asked).tokens
            else:
                request = theirs._instruct_request_normalizer.from_chat_completion_request(asked)
                expected = theirs.instruct_tokenizer.encode_instruct(request).tokens
            assert ids(own, spoken) == expected, (path.name, spoken)


# ---------------------------------------------------------------- for random conversations

WORDS = st.one_of(
    st.text("abAB ,.:#[]/<>\n\t12é日😀\u0301\u200b", min_size=1, max_size=14),
    st.sampled_from(
        [
            "x<|im_end|>y",
            "</s>",
            " <s>[INST] ",
            "a\n### Human: b",
            "<|eot_id|> . ",
            ".",
            " ? ",
            "\n\nok\n",
            "[/INST]",
            "<|end|>\n",
        ]
    ),
).filter(lambda s: bool(s.strip()))
PAIRS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3)
ENDS = {name: writer(None, name).ending() for name in NAMES}


def learnt_places(own: Tokenizer, text: Any) -> tuple[set[int], set[int]]:
    """The characters, but for blanks, of tokens that are learnt, and of all."""
    example = encode(own, text)
    found, places = _placed(own, text)
    begin = len(example.ids) - len(found) - (text.open_ended and own.eos_id is not None)
    assert example.ids[begin:][: len(found)] == found
    if text.open_ended:
        assert example.ids[-1] == own.eos_id and example.targets[-1]
    targets = zip(places, example.targets[begin:], strict=False)
    solid = {i for i, c in enumerate(text.text) if not c.isspace()}
    read = {i for b, e in places for i in range(b, e)} & solid
    return {i for (b, e), learnt in targets if learnt for i in range(b, e)} & solid, read


def holds(own: Tokenizer, write: Any, spoken: Conversation, end: str | None) -> None:
    """What is learnt is each answer's words and the end behind them: no letter less, no letter more."""
    text = write.write(spoken)
    learnt, read = learnt_places(own, text)
    assert len(text.spans) == len(spoken.answers)
    inside = {i for b, e in text.spans for i in range(b, e)}
    assert learnt == read & inside, [text.text[i] for i in sorted(learnt ^ (read & inside))]
    for (begin, stop), answer in zip(text.spans, spoken.answers, strict=True):
        said = text.text[begin:stop].removeprefix("<think>\n\n</think>\n\n")
        assert any(said.startswith(words) for words in forms(answer))
        rest = next(said[len(w) :] for w in sorted(forms(answer), key=len, reverse=True) if said.startswith(w))
        assert rest.strip() == (end if end is not None else rest.strip()) and len(rest) < 24, (said, answer)


def conversation(pairs: list[tuple[str, str]], system: str, rounds: int | None = None) -> Conversation:
    return talk(*(w for pair in pairs[:rounds] for w in pair), system=system)


@pytest.mark.parametrize("kind", ["bpe", "spm-bpe", "unigram", "wordpiece"])
@settings(max_examples=5, deadline=None)
@given(pairs=PAIRS, system=st.sampled_from(["", "be brief"]))
def test_what_is_learnt_is_an_answer_and_its_end(kind: str, pairs: list[tuple[str, str]], system: str) -> None:
    own = tokenizer(kind)
    for name, template in NAMES.items():
        spoken = conversation(pairs, system, 1 if isinstance(template, Instructions) else None)
        holds(own, writer(own, name), spoken, ENDS[name])


@pytest.mark.parametrize("name", PUBLISHED)
@settings(max_examples=8, deadline=None)
@given(pairs=PAIRS)
def test_so_it_is_of_published_templates(name: str, pairs: list[tuple[str, str]]) -> None:
    own = tokenizer("bpe", name)
    write = writer(own)
    holds(own, write, conversation(pairs, ""), write.ending())
    assert not unknown_tokens(own, write)


# ---------------------------------------------------------------- named templates as Jinja


@settings(max_examples=10, deadline=None)
@given(pairs=PAIRS, system=st.sampled_from(["", "be 'brief'\n"]))
def test_named_templates_as_jinja_write_the_same(pairs: list[tuple[str, str]], system: str) -> None:
    """So that a tuned model's files carry the template that it learnt; transformers writes the same with it."""
    own = tokenizer("bpe")
    for name, template in NAMES.items():
        spoken = conversation(pairs, system, 1 if isinstance(template, Instructions) else None)
        form, write = jinja(template, own), TurnsWriter(template, own)
        for asks, text in ((False, write.write(spoken).text), (True, write.prompt(spoken.turns[:-1]).text)):
            turns = spoken.messages[:-1] if asks else spoken.messages
            names = {"bos_token": "<s>", "eos_token": "</s>"}
            assert render(form, turns, asks, names, {}) == text, name


def test_named_templates_are_known_by_their_jinja() -> None:
    own = tokenizer.__wrapped__("bpe")
    for name, template in NAMES.items():
        own.chat_template = jinja(template, own)
        found = writer(own)
        assert isinstance(found, TurnsWriter) and found.template == TurnsWriter(template, own).template, name
    opening = Tokenizer.train("spm-bpe", TEXTS, 330, Specials(bos="<s>", eos="</s>", unk="<unk>"))
    assert opening.encode("a")[0] == opening.bos_id
    assert jinja(NAMES["vicuna"], opening).startswith("{{- '<s>' }}")  # a tool that adds no token of its own writes it
    assert not jinja(NAMES["llama-2-chat"], opening).startswith("{{- '<s>' }}")


def test_where_a_model_stops() -> None:
    stops = {name: writer(None, name).stops() for name in NAMES}
    assert stops["guanaco"] == ("### Human:",) and stops["gorilla"] == ("###USER:",) and stops["plain"] == ()
    assert stops["stable-beluga"] == ("### User:",) and stops["vicuna-v0"] == ("###",) and stops["alpaca"] == ("</s>",)
