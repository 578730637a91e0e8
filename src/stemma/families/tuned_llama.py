"""The tuned children of LLaMA and LLaMA-2: the network stays, the weights move on."""

from stemma.declare.family import About, like
from stemma.declare.recipes import AdamW, Schedule
from stemma.declare.tuning import RL, SFT, LoRA, Preferences, RejectionSampling, RewardModel, Source, Tuning
from stemma.families import templates
from stemma.families.llama import llama, llama2

PLAIN = AdamW(0.9, 0.999, weight_decay=0.0)  # of the tuning scripts
PADDED = 32_001  # LLaMA's vocabulary and a token for padding
LINEAR = ("q", "k", "v", "o", "gate", "up", "down")  # all linear layers of a block

alpaca = llama.trained(
    "alpaca",
    {
        "text.pad": "[PAD]",
        "text.pad_id": 32_000,
        "recipe.optimizer": PLAIN,
        "recipe.lr": 2e-5,
        "recipe.schedule": Schedule("cosine", warmup=36),
        "recipe.batch": 128 * 512,
        "recipe.steps": 3 * 52_002 // 128,
        "recipe.mixed": False,
        "recipe.data": "52,002 instructions that text-davinci-003 wrote from 175 seeds",
    },
    sizes={
        "alpaca-7b": like(llama, "llama-7b", vocab=PADDED),
        "alpaca-13b": like(
            llama, "llama-13b", vocab=PADDED, changes={"recipe.lr": 1e-5, "recipe.steps": 5 * 52_002 // 128}
        ),
    },
    about=About(
        2023,
        "Stanford Alpaca: An Instruction-following LLaMA Model",
        "github.com/tatsu-lab/stanford_alpaca",
        weights="published as differences from LLaMA's",
        note="3 epochs (5 at 13B), warm-up 3 % of the steps; rows are cut at 512 tokens; the loss is on the answer",
    ),
    tuning=Tuning(
        (SFT("instructions", templates.ALPACA, epochs=(3, 5), examples=128, context=512, loss_on="answers"),),
        "self-instruct: rows of instruction, input and output",
        "Below is an instruction ... ### Instruction: ... ### Response:",
    ),
)

vicuna = llama.trained(
    "vicuna",
    {
        "recipe.optimizer": PLAIN,
        "recipe.lr": 2e-5,
        "recipe.schedule": Schedule("cosine"),
        "recipe.batch": 128 * 2048,
        "recipe.data": "conversations that users shared on ShareGPT: about 70k, later 125k",
    },
    sizes={
        "vicuna-7b-v1.3": like(llama, "llama-7b", hub="lmsys/vicuna-7b-v1.3", aliases=("vicuna-7b",)),
        "vicuna-13b-v1.3": like(llama, "llama-13b", hub="lmsys/vicuna-13b-v1.3", aliases=("vicuna-13b",)),
        "vicuna-33b-v1.3": like(llama, "llama-33b", hub="lmsys/vicuna-33b-v1.3", aliases=("vicuna-33b",)),
    },
    about=About(
        2023,
        "Vicuna: An Open-Source Chatbot Impressing GPT-4 with 90% ChatGPT Quality",
        "lmsys.org/blog/2023-03-30-vicuna; github.com/lm-sys/FastChat",
        note="3 epochs, warm-up 3 %; the loss is on the assistant's words and their end token; v0 had another template",
    ),
    tuning=Tuning(
        (SFT("conversations", templates.VICUNA, epochs=3, examples=128, context=2048, loss_on="answers"),),
        "ShareGPT conversations, split at whole rounds",
        "USER: ... ASSISTANT: ...</s>",
    ),
)

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
        (SFT("conversations", templates.VICUNA, epochs=3, examples=128, context=4096, loss_on="answers"),),
        "ShareGPT conversations, split at whole rounds",
        "USER: ... ASSISTANT: ...</s>",
    ),
    others=("vicuna",),
)

qlora = llama.trained(
    "qlora",
    {
        "recipe.optimizer": PLAIN,
        "recipe.lr": 2e-4,
        "recipe.schedule": Schedule("constant", warmup=56),
        "recipe.batch": 16 * 528,
        "recipe.steps": 1875,
        "recipe.clip": 0.3,
        "recipe.data": "9,846 top-ranked dialogues of OpenAssistant (OASST1)",
    },
    sizes={
        f"guanaco-{n}b": like(
            llama, f"llama-{n}b", hub=f"timdettmers/guanaco-{n}b", aliases=(f"qlora-{n}b",), changes=changes
        )
        for n, changes in ((7, {}), (13, {}), (33, {"recipe.lr": 1e-4}), (65, {"recipe.lr": 1e-4}))
    },
    about=About(
        2023,
        "QLoRA: Efficient Finetuning of Quantized LLMs (Guanaco)",
        "arXiv:2305.14314",
        note="the weights are adapters: rank 64 on every linear layer of the blocks, beside a base frozen in 4-bit "
        "NormalFloat with doubly quantised scales; the sizes count the base",
    ),
    tuning=Tuning(
        (
            SFT(
                "conversations",
                templates.GUANACO,
                examples=16,
                context=528,
                loss_on="everything",
                adapter=LoRA(64, 16, (0.1, 0.05, 0.05, 0.05), LINEAR, "nf4", double=True),
                remembered=("template",),
            ),
        ),
        "OASST1, one text a dialogue, with loss on both sides",
        "### Human: ... ### Assistant: ...",
    ),
)

koala = llama.trained(
    "koala",
    {
        "recipe.lr": None,
        "recipe.batch": None,
        "recipe.data": "dialogues of ShareGPT and HC3, and open sets: OIG, Alpaca, Anthropic HH, WebGPT, summaries",
    },
    sizes={"koala-7b": like(llama, "llama-7b"), "koala-13b": like(llama, "llama-13b")},
    about=About(
        2023,
        "Koala: A Dialogue Model for Academic Research",
        "bair.berkeley.edu/blog/2023/04/03/koala",
        weights="published as differences from LLaMA's",
        note="2 epochs; rate, batch and length are unpublished; answers that were compared are both learnt, each "
        "after a marker that says which was preferred",
    ),
    tuning=Tuning(
        (
            SFT(
                "conversations",
                templates.KOALA,
                (
                    Source("ShareGPT", examples=30_000),
                    Source("HC3", examples=87_000),
                    Source("OIG", examples=30_000),
                    Source("Alpaca", examples=52_000),
                    Source("Anthropic HH", examples=160_000),
                    Source("WebGPT", examples=20_000),
                    Source("summarisation", examples=93_000),
                ),
                epochs=2,
                feedback=("a helpful answer", "an unhelpful answer"),
            ),
        ),
        "about 30k shared dialogues, 87k answers of HC3, and open instruction and feedback sets",
        "BEGINNING OF CONVERSATION: USER: ... GPT:",
    ),
)

gorilla = llama.trained(
    "gorilla",
    {
        "recipe.optimizer": PLAIN,
        "recipe.lr": 2e-5,
        "recipe.schedule": Schedule("cosine"),
        "recipe.batch": 64 * 2048,
        "recipe.data": "APIBench: about 16k questions for 1,645 calls of machine-learning libraries",
    },
    sizes={
        "gorilla-7b-hf-v0": like(llama, "llama-7b", hub="gorilla-llm/gorilla-7b-hf-delta-v0", aliases=("gorilla-7b",)),
        "gorilla-7b-th-v0": like(llama, "llama-7b", hub="gorilla-llm/gorilla-7b-th-delta-v0"),
        "gorilla-7b-tf-v0": like(llama, "llama-7b", hub="gorilla-llm/gorilla-7b-tf-delta-v0"),
    },
    about=About(
        2023,
        "Gorilla: Large Language Model Connected with Massive APIs",
        "arXiv:2305.15334",
        weights="published as differences from LLaMA's",
        note="5 epochs, warm-up 3 %; trained with and without the retrieved document in the question",
    ),
    tuning=Tuning(
        (SFT("completions", templates.GORILLA, epochs=5, examples=64, context=2048),),
        "APIBench, with the document of the call in the question",
        "###USER: ... ###ASSISTANT:",
    ),
)

vigogne = llama.trained(
    "vigogne",
    {
        "recipe.optimizer": PLAIN,
        "recipe.lr": 1e-4,
        "recipe.schedule": Schedule("cosine"),
        "recipe.batch": 64 * 2048,
        "recipe.data": "260k French instructions: Alpaca translated, self-instruct in French, and others",
    },
    sizes={
        "vigogne-7b-instruct": like(llama, "llama-7b", hub="bofenghuang/vigogne-7b-instruct"),
        "vigogne-13b-instruct": like(llama, "llama-13b", hub="bofenghuang/vigogne-13b-instruct"),
        "vigogne-33b-instruct": like(llama, "llama-33b", hub="bofenghuang/vigogne-33b-instruct"),
    },
    about=About(
        2023,
        "Vigogne: French Instruction-following and Chat Models",
        "github.com/bofenghuang/vigogne",
        note="rank-64 adapters on a 4-bit base, 3 epochs; later versions start from LLaMA-2, Mistral and others",
    ),
    tuning=Tuning(
        (
            SFT(
                "instructions",
                templates.VIGOGNE,
                epochs=3,
                examples=64,
                context=2048,
                loss_on="answers",
                adapter=LoRA(64, 16, 0.05, LINEAR, "nf4"),
            ),
        ),
        "French instructions, later 520k dialogues",
        "### System: ... ### Instruction: ... ### Response:",
    ),
)

tulu = llama.trained(
    "tulu",
    {
        "text.pad": "<pad>",
        "text.pad_id": 32_000,
        "recipe.optimizer": PLAIN,
        "recipe.lr": 2e-5,
        "recipe.schedule": Schedule("linear"),
        "recipe.batch": 128 * 2048,
        "recipe.data": "FLAN v2, CoT, OASST1, Dolly, GPT4-Alpaca, Code-Alpaca, ShareGPT",
    },
    sizes={
        "tulu-7b": like(llama, "llama-7b", vocab=PADDED, hub="allenai/tulu-7b"),
        "tulu-13b": like(llama, "llama-13b", vocab=PADDED, hub="allenai/tulu-13b"),
        "tulu-30b": like(llama, "llama-33b", vocab=PADDED, hub="allenai/tulu-30b", changes={"recipe.lr": 1e-5}),
        "tulu-65b": like(llama, "llama-65b", vocab=PADDED, hub="allenai/tulu-65b", changes={"recipe.lr": 1e-5}),
    },
    about=About(
        2023,
        "How Far Can Camels Go? Exploring the State of Instruction Tuning on Open Resources",
        "arXiv:2306.04751",
        weights="published as differences from LLaMA's",
        note="2 epochs, warm-up 3 %; the row for padding and the rate at 30B and 65B are from memory of the release",
    ),
    tuning=Tuning(
        (
            SFT(
                "conversations",
                templates.TULU,
                (
                    Source("FLAN v2", examples=100_000),
                    Source("CoT", examples=100_000),
                    Source("OASST1"),
                    Source("Dolly"),
                    Source("GPT4-Alpaca"),
                    Source("Code-Alpaca"),
                    Source("ShareGPT"),
                ),
                epochs=2,
                examples=128,
                context=2048,
                loss_on="answers",
            ),
        ),
        "a mixture of seven sets of human and machine instructions",
        "<|user|> ... <|assistant|> ...",
    ),
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
    ),
    others=("tulu",),
)

orca = llama.trained(
    "orca",
    {
        "text.pad": "[PAD]",
        "text.pad_id": 32_000,
        "recipe.lr": None,
        "recipe.batch": None,
        "recipe.data": "explanations by ChatGPT (5M) and GPT-4 (1M) for queries of FLAN, with 16 system messages",
    },
    sizes={"orca-13b": like(llama, "llama-13b", vocab=PADDED)},
    about=About(
        2023,
        "Orca: Progressive Learning from Complex Explanation Traces of GPT-4",
        "arXiv:2306.02707",
        weights="never published",
        note="4 epochs on ChatGPT's explanations, then 4 on GPT-4's; the loss is on the teacher's tokens only; rates "
        "are unpublished",
    ),
    tuning=Tuning(
        (
            SFT(
                "conversations",
                mixture=(Source("FLAN-5M", examples=5_000_000),),
                epochs=4,
                context=2048,
                loss_on="answers",
                packed=True,
                then=SFT(
                    "conversations",
                    mixture=(Source("FLAN-1M", examples=1_000_000),),
                    epochs=4,
                    context=2048,
                    loss_on="answers",
                    packed=True,
                ),
            ),
        ),
        "FLAN-5M, then FLAN-1M: system message, query, explanation",
        "system, user, assistant",
    ),
    others=(),
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
            RejectionSampling("prompts", rounds=4, from_base=True),
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
                then=SFT("conversations", templates.BELUGA, examples=512, packed=False),
            ),
        ),
        "system message, question, answer of a GPT",
        "### System: ... ### User: ... ### Assistant:",
    ),
    others=("orca",),
)
