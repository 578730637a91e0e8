"""GPT-3's descendants by more training, and those of whose design too little is known."""

from stemma.declare.family import About, like
from stemma.declare.recipes import Schedule
from stemma.declare.tuning import RL, SFT, Pretraining, RejectionSampling, RewardModel, Tuning
from stemma.families import templates
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
        (
            SFT("completions", epochs=(2, 5, 3), examples=(256, 512, 512), lr_share=0.1, average=0.99),
            RewardModel("comparisons", epochs=1, examples=(64, 64, 32), lr_share=(0.05, 0.05, 1 / 60), average=0.99),
            RL(
                "prompts",
                examples=256 * 256,
                lr_share=0.004,
                algorithm="ppo",
                kl=0.02,
                clip=0.2,
                discount=1.0,
                gae=0.95,
                minibatch=512,
                inner=1,
            ),
            RejectionSampling(samples=(4, 16, 64)),
        ),
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
        (
            SFT(
                "completions",
                templates.PLAIN,
                epochs=16,
                examples=(32, 32, 8),
                changes=(("arch.dropout.residual", 0.2),),
                stand_in="builtin:instructions",
            ),
            RewardModel(
                "rankings",
                epochs=1,
                examples=64,
                lr=9e-6,
                schedule=Schedule("cosine", floor=0.1),
                size="gpt3-6.7b",
                grouped=True,
                centred=True,
            ),
            RL(
                "prompts",
                examples=512,
                average=0.992,
                algorithm="ppo",
                kl=0.02,
                clip=0.2,
                discount=1.0,
                episodes=256_000,
                minibatch=64,
                inner=1,
                value_lr=(9e-6, 9e-6, 5e-6),
                temperature=1.0,
                ptx=27.8,
                ptx_rows=8,
                start=SFT(
                    "completions",
                    templates.PLAIN,
                    epochs=2,
                    examples=(32, 32, 8),
                    lr=(5e-6, 1.04e-5, 2.45e-6),
                    schedule=Schedule("cosine", floor=0.1),
                    pretraining_share=0.1,
                ),
            ),
        ),
        "about 13k demonstrations, 33k prompts with 4 to 9 ranked answers each, 31k prompts for PPO",
        "the prompt as it came",
        stand_ins="builtin:instructions in place of the labellers' demonstrations, builtin:rankings of their rankings, "
        "builtin:questions of prompts to the API, builtin:docs of pretraining text; `stemma align instructgpt` runs "
        "all stages",
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
        (SFT("conversations"), RewardModel(), RL()),
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
    tuning=Tuning((Pretraining(), SFT(), RewardModel(), RL()), "unpublished"),
    others=("instructgpt",),
)
