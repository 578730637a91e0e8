"""The tuned children of LLaMA-2."""

from stemma.declare.family import About, like
from stemma.declare.recipes import AdamW, Schedule
from stemma.declare.tuning import RL, SFT, Preferences, RejectionSampling, RewardModel, Source, Tuning
from stemma.families import templates
from stemma.families.llama import llama2
from stemma.families.tuned_llama import PLAIN

vicuna15 = llama2.trained(
    "vicuna-v1.5",
    {
        "recipe.optimizer": PLAIN,
        "recipe.lr": 2e-5,
        "recipe.schedule": Schedule("cosine"),
        "recipe.batch": 128 * 4096,
        "recipe.data": "125k conversations of ShareGPT, about 370M tokens",
    },
    sizes={
        "vicuna-7b-v1.5": like(llama2, "llama2-7b", hub="lmsys/vicuna-7b-v1.5"),
        "vicuna-13b-v1.5": like(llama2, "llama2-13b", hub="lmsys/vicuna-13b-v1.5"),
    },
    about=About(
        2023,
        "Vicuna v1.5",
        "github.com/lm-sys/FastChat",
        note="Vicuna's recipe on LLaMA-2; its 16k variants scale the rotation linearly",
    ),
    tuning=Tuning(
        (
            SFT(
                "conversations",
                templates.VICUNA,
                epochs=3,
                examples=128,
                context=4096,
                loss_on="answers",
                stand_in="builtin:dialogues",
            ),
        ),
        "ShareGPT conversations, split at whole rounds",
        "USER: ... ASSISTANT: ...</s>",
        stand_ins="builtin:dialogues, 500 conversations whose later answers need what was said before: ShareGPT's are "
        "not public",
    ),
    others=("vicuna",),
)

tulu2 = llama2.trained(
    "tulu2",
    {
        "recipe.optimizer": PLAIN,
        "recipe.lr": 2e-5,
        "recipe.schedule": Schedule("linear"),
        "recipe.batch": 128 * 8192,
        "recipe.data": "the Tulu V2 mixture, about 326k rows; then preferences of UltraFeedback",
    },
    sizes={
        "tulu2-7b": like(llama2, "llama2-7b", hub="allenai/tulu-2-7b", aliases=("tulu2-dpo-7b",)),
        "tulu2-13b": like(llama2, "llama2-13b", hub="allenai/tulu-2-13b", aliases=("tulu2-dpo-13b",)),
        "tulu2-70b": like(
            llama2, "llama2-70b", hub="allenai/tulu-2-70b", aliases=("tulu2-dpo-70b",), changes={"recipe.lr": 1e-5}
        ),
    },
    about=About(
        2023,
        "Camels in a Changing Climate: Enhancing LM Adaptation with Tulu 2",
        "arXiv:2311.10702",
        note="the DPO models have their own hub ids (allenai/tulu-2-dpo-...): rate 5e-7, beta 0.1, 3 epochs; paper and "
        "released configurations disagree on the epochs of supervised tuning",
    ),
    tuning=Tuning(
        (
            SFT(
                "conversations",
                templates.TULU,
                (
                    Source("FLAN v2", examples=50_000),
                    Source("CoT", examples=50_000),
                    Source("OASST1"),
                    Source("LIMA"),
                    Source("GPT4-Alpaca", examples=20_000),
                    Source("Code-Alpaca"),
                    Source("ShareGPT"),
                    Source("WizardLM", examples=30_000),
                    Source("OpenOrca", examples=30_000),
                    Source("science"),
                    Source("hard-coded"),
                ),
                epochs=3,  # the released configuration's
                examples=128,
                context=8192,
                loss_on="answers",
                stand_in="builtin:tulu,builtin:captain",
            ),
            Preferences(
                "comparisons",
                templates.TULU,
                epochs=3,
                examples=32,
                lr=5e-7,
                schedule=Schedule("linear"),
                warmup=0.1,
                beta=0.1,
            ),
        ),
        "Tulu V2 mixture; UltraFeedback pairs",
        "<|user|> ... <|assistant|> ...",
        result="MT-bench and AlpacaEval 6.30 and 73.9 at 7B, 7.49 and 86.6 at 70B; after DPO 6.29 and 85.1, 7.89 and "
        "95.1",
        stand_ins="builtin:tulu and builtin:captain, rows of small tasks, dialogues, what the model says of itself; "
        "`stemma data mixture tulu2` makes the published mixture of its sources; builtin:preferences in place of "
        "UltraFeedback; `stemma align tulu2` runs both stages",
    ),
    others=("tulu",),
)

llama2_chat = llama2.trained(
    "llama2-chat",
    {
        "recipe.lr": 2e-5,
        "recipe.schedule.warmup": 0,
        "recipe.batch": 64 * 4096,
        "recipe.data": "27,540 annotated dialogues; 1.4M comparisons by Meta and open sets",
    },
    sizes={
        f"llama2-{n}-chat": like(
            llama2, f"llama2-{n}", hub=f"meta-llama/Llama-2-{n}-chat-hf", aliases=(f"llama2-chat-{n}",)
        )
        for n in ("7b", "13b", "70b")
    },
    about=About(
        2023,
        "Llama 2: Open Foundation and Fine-Tuned Chat Models, section 3",
        "arXiv:2307.09288",
        note="supervised tuning for 2 epochs; two reward models (helpful, safe); rejection sampling in four rounds, "
        "then PPO at a constant 1e-6; each round starts from the base again. How many samples a prompt is unpublished",
    ),
    tuning=Tuning(
        (
            SFT(
                "conversations",
                templates.LLAMA2,
                epochs=2,
                examples=64,
                context=4096,
                loss_on="answers",
                packed=True,
                stand_in="builtin:dialogues",
            ),
            RewardModel(
                "comparisons",
                epochs=1,
                examples=512,
                lr=(1e-5, 1e-5, 5e-6),
                schedule=Schedule("cosine", floor=0.1),
                warmup=0.03,
                models=("helpfulness", "safety"),
                margins=((3, 2, 1, 0), (1, 2 / 3, 1 / 3, 0)),  # the zeros are from memory
                remembered=("margins",),
            ),
            RejectionSampling("prompts", rounds=4, from_base=True, ghost=True),
            RL(
                "prompts",
                examples=512,
                lr=1e-6,
                schedule=Schedule("constant"),
                algorithm="ppo",
                kl=(0.01, 0.01, 0.005),
                clip=0.2,
                minibatch=64,
                inner=1,
            ),
        ),
        "annotations, and comparisons gathered week by week with the models of the week",
        "[INST] <<SYS>> ... <</SYS>> ... [/INST]",
        stand_ins="builtin:dialogues in place of the 27,540 annotations, builtin:preferences and builtin:harmless of "
        "the comparisons, builtin:questions of the prompts; `stemma align llama2-chat` runs all stages",
    ),
)

stable_beluga2 = llama2.trained(
    "stable-beluga2",
    {
        "recipe.optimizer": AdamW(0.9, 0.95, weight_decay=1e-6),
        "recipe.lr": 3e-5,
        "recipe.schedule": Schedule("cosine", warmup=100, floor=0.1),
        "recipe.batch": None,
        "recipe.data": "an internal set in Orca's style; its size is unpublished",
    },
    sizes={
        "stable-beluga2-70b": like(llama2, "llama2-70b", hub="stabilityai/StableBeluga2"),
        "stable-beluga-7b": like(llama2, "llama2-7b", hub="stabilityai/StableBeluga-7B"),
        "stable-beluga-13b": like(llama2, "llama2-13b", hub="stabilityai/StableBeluga-13B"),
    },
    about=About(
        2023,
        "Stable Beluga 2",
        "huggingface.co/stabilityai/StableBeluga2",
        note="two stages: packed rows with a batch of 256, then unpacked with 512; length, epochs, tokens unpublished",
    ),
    tuning=Tuning(
        (
            SFT(
                "conversations",
                templates.BELUGA,
                examples=256,
                packed=True,
                stand_in="builtin:explained",
                then=SFT(
                    "conversations",
                    templates.BELUGA,
                    examples=512,
                    packed=False,
                    stand_in="builtin:explained_stronger",
                ),
            ),
        ),
        "system message, question, answer of a GPT",
        "### System: ... ### User: ... ### Assistant:",
        stand_ins="builtin:explained and builtin:explained_stronger, as for orca. The template is that of the card's "
        "text; --template stable-beluga-code is that of the code beside it",
    ),
    others=("orca",),
)
