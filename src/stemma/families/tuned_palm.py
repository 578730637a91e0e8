"""PaLM's children by more training, LaMDA and FLAN, and the ones of whose design too little is known."""

from stemma.declare.family import About, Size, like
from stemma.declare.objectives import CLM, Denoiser, Denoisers
from stemma.declare.recipes import AdamW, Schedule
from stemma.declare.tuning import RL, SFT, Pretraining, RewardModel, SoftPrompt, Source, Tuning
from stemma.families import templates
from stemma.families.palm import palm
from stemma.families.t5 import t5_v1_1
from stemma.nn.parts import Dims, Prefix

u_palm = palm.trained(
    "u-palm",
    {
        "arch.mask": Prefix(),
        "objective": Denoisers(
            (
                Denoiser("[S2S]", None, None, share=0.5),
                Denoiser("[NLU]", 0.15, 3.0, share=0.25),
                Denoiser("[NLG]", 0.15, 32.0, share=0.125),
                Denoiser("[NLG]", 0.5, 3.0, share=0.125),
            )
        ),
        "text.sentinels": 100,
        "text.extras": ("[NLU]", "[NLG]", "[S2S]"),
        "recipe.lr": 1e-4,
        "recipe.schedule": Schedule("cosine", floor=0.01),
        "recipe.batch": 32 * 2048,
        "recipe.steps": 20_000,
        "recipe.data": "PaLM's, as a mixture of denoisers: 50 % prefix, 25 % long or many spans, 25 % short spans",
    },
    sizes={
        "u-palm-8b": like(palm, "palm-8b", changes={"recipe.batch": 128 * 2048, "recipe.steps": 50_000}),
        "u-palm-62b": like(palm, "palm-62b", changes={"recipe.batch": 128 * 2048, "recipe.steps": 50_000}),
        "u-palm-540b": like(palm, "palm-540b"),
    },
    about=About(
        2022,
        "Transcending Scaling Laws with 0.1% Extra Compute",
        "arXiv:2210.11399",
        weights="never published",
        note="UL2R: the prefix is seen whole and mode tokens stand before it; the smaller models had up to 50k steps. "
        "Published of the quarter of long or many spans: a mean of 32 or a rate of up to a half; halves of each stand "
        "here. How sentinels and modes came into PaLM's vocabulary is unpublished: here they are added to it",
    ),
    tuning=Tuning(
        (Pretraining("text", examples=(128, 128, 32), context=2048, stand_in="builtin:docs"),),
        "UL2R's mixture of denoisers on PaLM's data, about 1.3B tokens at 540B",
        result="0.16 % more compute at 540B; PaLM's few-shot results at half of its compute; fills in texts",
        stand_ins="builtin:docs, docstrings and the language reference, in place of PaLM's own data",
    ),
)

PLACES = ("embed", "residual", "attention", "inner", "final")
DROPPED = tuple((f"arch.dropout.{place}", (0.05, 0.05, 0.1)) for place in PLACES)

flan_palm = palm.trained(
    "flan-palm",
    {
        "recipe.lr": 3e-3,
        "recipe.schedule": Schedule("constant"),
        "recipe.batch": 32 * 2048,
        "recipe.steps": 40_000,
        "recipe.data": "1,836 tasks of 473 sets in 146 categories, with nine of chains of thought",
    },
    sizes={
        "flan-palm-8b": like(palm, "palm-8b"),
        "flan-palm-62b": like(palm, "palm-62b"),
        "flan-palm-540b": like(palm, "palm-540b", changes={"recipe.lr": 1e-3, "recipe.steps": 21_000}),
    },
    about=About(
        2022,
        "Scaling Instruction-Finetuned Language Models",
        "arXiv:2210.11416",
        weights="never published",
        note="starts from PaLM (Flan-U-PaLM, 30k steps at 1e-3, is the one that starts from U-PaLM)",
    ),
    tuning=Tuning(
        (
            SFT(
                "completions",
                templates.FLAN,
                mixture=(
                    Source("Muffin", 0.46, cap=30_000),
                    Source("T0-SF", 0.279, cap=20_000),
                    Source("Natural Instructions v2", 0.242, cap=5_000),
                    Source("chains of thought", 0.018, cap=100_000),
                ),
                examples=32,
                warmup=0.0,
                packed=True,
                loss_on="answers",
                inputs=2048,
                targets=512,
                steps=(40_000, 40_000, 21_000),
                remembered=("inputs", "targets"),  # those of the released mixtures
                changes=DROPPED,
                stand_in="builtin:flan2022",
            ),
        ),
        "Muffin 46 %, T0-SF 27.9 %, Natural Instructions v2 24.2 %, chains of thought 1.8 %",
        "the task's own words, an end token, the answer",
        result="mean of six suites, normalised, at 8B: 6.4 before, 21.9 with all four parts; MMLU 24.3 to 49.3 at 8B "
        "and 71.3 to 73.2 at 540B; chains of thought alone make direct answers worse",
        stand_ins="builtin:flan2022, 36 small tasks in eleven clusters in the four forms, three of them with chains of "
        "thought; `stemma data mixture flan2022-b` makes the published mixture of your own sets",
    ),
)

med_palm = flan_palm.trained(
    "med-palm",
    {
        "recipe.optimizer": AdamW(weight_decay=1e-5),
        "recipe.batch": None,
        "recipe.steps": 200,
        "recipe.data": "40 examples by clinicians, of HealthSearchQA, LiveQA and MedicationQA",
    },
    sizes={
        "med-palm-540b": like(flan_palm, "flan-palm-540b", changes={"recipe.lr": 3e-3, "recipe.steps": 200}),
    },
    about=About(
        2022,
        "Large Language Models Encode Clinical Knowledge",
        "arXiv:2212.13138",
        weights="never published",
        note="Flan-PaLM stays frozen; 100 vectors (1,843,200 numbers) before the written prompt are all that is "
        "learnt. The size counts the frozen network",
    ),
    tuning=Tuning(
        (
            SFT(
                "completions",
                steps=200,
                examples=32,
                lr=0.003,
                loss_on="answers",
                packed=False,
                adapter=SoftPrompt(100, 0.5),
                remembered=("steps", "examples", "lr", "adapter.spread"),
                stand_in="builtin:medicine",
            ),
        ),
        "instruction prompt tuning",
        "100 learnt vectors, then instructions, examples, question",
        result="MedQA 67.6 % by Flan-PaLM 540B with self-consistency; clinicians found 92.6 % of Med-PaLM's long "
        "answers in line with the consensus, and 61.9 % of Flan-PaLM's (recalled)",
        stand_ins="builtin:medicine, 696 questions of three tasks made of a table of 155 widely known facts, with a "
        "written prompt for each task, in place of the clinicians' 40 examples and prompts",
    ),
)

palm2 = palm.unpublished(
    "palm2",
    about=About(
        2023,
        "PaLM 2 Technical Report",
        "arXiv:2305.10403",
        weights="never published",
        note="sizes S, M and L, their widths, tokens and rates are unpublished; published: a mixture of objectives, "
        "more languages, and a largest model that is smaller than PaLM's and took more compute",
    ),
    tuning=Tuning((Pretraining(),), "hundreds of languages, code, mathematics, dialogue"),
    others=(),
)

gemini = palm.unpublished(
    "gemini",
    about=About(
        2023,
        "Gemini: A Family of Highly Capable Multimodal Models",
        "arXiv:2312.11805",
        weights="never published",
        note="a Transformer decoder with efficient attention and 32k context over text, images, audio and video in one "
        "sequence; Nano-1 has 1.8B and Nano-2 3.25B parameters, distilled; all other widths are unpublished",
    ),
    tuning=Tuning((Pretraining(), SFT(), RewardModel(), RL()), "unpublished mixture of text, images, audio and video"),
    others=("palm2",),
)

lamda = t5_v1_1.evolve(
    "lamda",
    {
        "arch.structure": "decoder",
        "objective": CLM(),
        "text.sentinels": 0,
        "recipe.lr": None,
        "recipe.z_loss": 0.0,
        "recipe.data": "dialogues and web documents, 1.56T words",
    },
    sizes={
        "lamda-137b": Size(Dims(8192, 64, 128, 65_536, 32_000, 1024, head_dim=128), published="137B without embeddings")
    },
    about=About(
        2021,
        "LaMDA: Language Models for Dialog Applications",
        "arXiv:2201.08239",
        weights="never published",
        note="announced in 2021, the paper is of 2022. Published: depth, widths, T5's relative attention and "
        "gated GELU; norms, tying, scaling of scores and the length of rows are not, and stand here as T5 1.1 has "
        "them (1,024 tokens are a stand-in)",
    ),
)

flan = lamda.trained(
    "flan",
    {
        "recipe.lr": 3e-5,
        "recipe.schedule": Schedule("constant"),
        "recipe.batch": 8192,
        "recipe.steps": 30_000,
        "recipe.data": "62 sets in 12 clusters, ten templates each, at most 30k examples of one",
    },
    sizes={"flan-137b": like(lamda, "lamda-137b")},
    about=About(
        2021,
        "Finetuned Language Models Are Zero-Shot Learners",
        "arXiv:2109.01652",
        weights="never published",
        note="tuned from LaMDA-PT by Adafactor; inputs up to 1,024 tokens, targets up to 256, packed; whole clusters "
        "are held out to evaluate",
    ),
    tuning=Tuning(
        (
            SFT(
                "completions",
                templates.FLAN,
                mixture=(Source("62 sets", cap=30_000),),
                context=1024 + 256,
                warmup=0.0,
                packed=True,
                loss_on="answers",
                inputs=1024,
                targets=256,
                steps=30_000,
                stand_in="builtin:flan",
            ),
        ),
        "62 sets in natural-language templates, drawn by size up to 3,000 examples of one",
        "ten templates a set, with OPTIONS: where there are any; an end token, the answer",
        result="zero-shot better than GPT-3 on 20 of 25 sets; held-out clusters 49.9 to 63.5 as the clusters in "
        "training go from one to seven; models of 8B and less get worse on them",
        stand_ins="builtin:flan, 36 small tasks in eleven clusters; `stemma data mixture flan2021` makes the published "
        "mixture of your own sets",
    ),
)
