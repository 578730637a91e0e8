"""GPT-3's descendants by more training, and those of whose design too little is known."""

from stemma.declare.family import About, Tuning, like
from stemma.families.gpt import gpt3

webgpt = gpt3.trained(
    "webgpt",
    {"recipe.data": "questions of ELI5, TriviaQA and others, answered with a text browser"},
    sizes={
        "webgpt-760m": like(gpt3, "gpt3-large"),
        "webgpt-13b": like(gpt3, "gpt3-13b"),
        "webgpt-175b": like(gpt3, "gpt3-175b"),
    },
    about=About(
        2021,
        "WebGPT: Browser-assisted question-answering with human feedback",
        "arXiv:2112.09332",
        weights="never published",
        note="browses by commands in plain text; each step sees the question, the quotes so far and the page afresh",
    ),
    tuning=Tuning(
        ("sft", "reward model", "rl", "rejection sampling"),
        "6,209 demonstrations of browsing, 21,548 comparisons of answers",
        "the state of the browser as text, then one command",
    ),
)

instructgpt = gpt3.trained(
    "instructgpt",
    {
        "recipe.lr": 9.65e-6,
        "recipe.schedule.warmup": 0,
        "recipe.data": "demonstrations and rankings by labellers, of prompts to the API",
    },
    sizes={
        "instructgpt-1.3b": like(gpt3, "gpt3-xl"),
        "instructgpt-6b": like(gpt3, "gpt3-6.7b", published="6B"),
        "instructgpt-175b": like(gpt3, "gpt3-175b", changes={"recipe.lr": 5.03e-6}),
    },
    about=About(
        2022,
        "Training language models to follow instructions with human feedback",
        "arXiv:2203.02155",
        weights="never published",
        note="lr and schedule are those of supervised tuning; PPO's rate of the released models is unpublished; the "
        "reward model is 6B for all sizes; PPO mixes in gradients of pretraining (ptx)",
    ),
    tuning=Tuning(
        ("sft", "reward model", "rl"),
        "about 13k demonstrations, 33k prompts with 4 to 9 ranked answers each, 31k prompts for PPO",
        "the prompt as it came",
    ),
)

chatgpt = gpt3.unpublished(
    "chatgpt",
    about=About(
        2022,
        "ChatGPT: Optimizing Language Models for Dialogue",
        "openai.com/blog/chatgpt",
        weights="never published",
        note="tuned from a model of the GPT-3.5 series by InstructGPT's method on dialogues; sizes, data and rates are "
        "unpublished, so the method can be had here, on open models, and no replica",
    ),
    tuning=Tuning(
        ("sft", "reward model", "rl"),
        "dialogues in which people played both sides with a model's suggestions, and InstructGPT's data as dialogues",
        "turns of user and assistant",
    ),
    others=("instructgpt",),
)

gpt4 = gpt3.unpublished(
    "gpt4",
    about=About(
        2023,
        "GPT-4 Technical Report",
        "arXiv:2303.08774",
        weights="never published",
        note="a Transformer that reads images and text and writes text, pretrained on the next token, then RLHF; size, "
        "design, data and hardware are unpublished. Published: how its loss was predicted from smaller runs",
    ),
    tuning=Tuning(("pretraining", "sft", "reward model", "rl"), "unpublished"),
    others=("instructgpt",),
)
