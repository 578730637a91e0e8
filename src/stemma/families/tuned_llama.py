"""The tuned children of LLaMA: the network stays, the weights move on."""

from stemma.declare.family import About, like
from stemma.declare.recipes import AdamW, Schedule
from stemma.declare.tuning import SFT, LoRA, Source, Tuning
from stemma.families import templates
from stemma.families.llama import llama

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
        (
            SFT(
                "instructions",
                templates.ALPACA,
                epochs=(3, 5),
                examples=128,
                context=512,
                loss_on="answers",
                stand_in="builtin:instructions",
            ),
        ),
        "self-instruct: rows of instruction, input and output",
        "Below is an instruction ... ### Instruction: ... ### Response:",
        result="like text-davinci-003 on the self-instruct set: preferred 90 times against 89, compared blindly by the "
        "authors (recalled)",
        stand_ins="builtin:instructions, 600 rows made of tables and small programs, in place of the 52,002; "
        "`stemma data self-instruct` makes rows as the authors did, with a model of yours",
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
        (
            SFT(
                "conversations",
                templates.VICUNA,
                epochs=3,
                examples=128,
                context=2048,
                loss_on="answers",
                stand_in="builtin:dialogues",
            ),
        ),
        "ShareGPT conversations, split at whole rounds",
        "USER: ... ASSISTANT: ...</s>",
        result="about 90 % of ChatGPT's quality at 13B, by summed scores of GPT-4 on 80 questions (recalled)",
        stand_ins="builtin:dialogues, 500 conversations whose later answers need what was said before: ShareGPT's are "
        "not public",
    ),
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
                stand_in="builtin:dialogues",
            ),
        ),
        "OASST1, one text a dialogue, with loss on both sides",
        "### Human: ... ### Assistant: ...",
        result="99.3 % of ChatGPT's score on Vicuna's questions at 65B, judged by GPT-4; as good as 16-bit tuning",
        stand_ins="builtin:dialogues in place of OASST1's 9,846 dialogues, which `--data` reads as they are published",
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
                stand_in="builtin:feedback",
            ),
        ),
        "about 30k shared dialogues, 87k answers of HC3, and open instruction and feedback sets",
        "BEGINNING OF CONVERSATION: USER: ... GPT:",
        result="on 180 queries about 100 people rated it as good as Alpaca or better, and in half of the cases as "
        "good as ChatGPT or better; the shared dialogues alone did slightly better than all of the data",
        stand_ins="builtin:feedback, compared answers that are made here; where a marker stands is unpublished: here "
        "between the user's words and `GPT:`, before every answer, and `a helpful answer` where nobody compared",
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
        (SFT("completions", templates.GORILLA, epochs=5, examples=64, context=2048, stand_in="builtin:calls"),),
        "APIBench, with the document of the call in the question",
        "###USER: ... ###ASSISTANT:",
        result="without documentation it makes the right call for 59.1 % of TorchHub's questions, 71.7 % of Hugging "
        "Face's and 83.8 % of TensorFlow Hub's (GPT-4: 38.7, 19.8 and 18.2 %)",
        stand_ins="builtin:calls, questions for 60 calls that do not exist, in place of APIBench, whose rows of all "
        "three dialects `--data` reads; `stemma data apis` puts documentation beside them",
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
                stand_in="builtin:french",
            ),
        ),
        "French instructions, later 520k dialogues",
        "### System: ... ### Instruction: ... ### Response:",
        stand_ins="builtin:french, 500 rows made of tables, in place of the translated and self-instructed 260k",
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
                stand_in="builtin:tulu,builtin:captain",
            ),
        ),
        "a mixture of seven sets of human and machine instructions",
        "<|user|> ... <|assistant|> ...",
        result="no single set is best at everything, and the mixture is the best on average (recalled)",
        stand_ins="builtin:tulu and builtin:captain, rows of small tasks, dialogues, what the model says of itself; "
        "`stemma data mixture tulu` makes the published mixture of its sources",
    ),
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
                stand_in="builtin:explained",
                then=SFT(
                    "conversations",
                    mixture=(Source("FLAN-1M", examples=1_000_000),),
                    epochs=4,
                    context=2048,
                    loss_on="answers",
                    packed=True,
                    stand_in="builtin:explained_stronger",
                ),
            ),
        ),
        "FLAN-5M, then FLAN-1M: system message, query, explanation",
        "system, user, assistant",
        result="BIG-Bench Hard without examples 49.7 (ChatGPT 48.9, Vicuna-13B 23.3); AGIEval 41.7, and 37.2 without "
        "the first stage",
        stand_ins="builtin:explained, 3,000 questions whose steps a program writes as sums, for FLAN-5M, and a fifth "
        "of them with the steps in sentences for FLAN-1M; `stemma data explain` makes such data by any teacher. The "
        "system messages and the template are this project's choice",
    ),
    others=(),
)
