"""BART and mBART: encoder-decoders that restore a text from noise."""

from stemma.declare.family import About, Size
from stemma.declare.objectives import Denoise
from stemma.declare.recipes import AdamW, Sampling
from stemma.families.bert import roberta
from stemma.nn.parts import Answer, Causal, Classify, Dims, Dropout, Heads, Learned, LMHead, PreNorm, Summary

CODES = (
    "en_XX ar_AR cs_CZ de_DE es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP nl_XX "
    "ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
)
CLASSIFY = Heads(task=Classify(3, Summary("end")))

bart = roberta.evolve(
    "bart",
    {
        "arch.structure": "encoder-decoder",
        "arch.position": Learned(offset=2),
        "arch.mask": Causal(),
        "arch.heads": Heads(lm=LMHead()),
        "arch.init.truncated": False,
        "arch.dropout.inner": 0.1,
        "objective": Denoise(infill=0.3, mean=3.0, permute=1.0),
        "text.start_id": 2,
        "recipe.lr": None,
        "recipe.schedule.warmup": 0,
        "recipe.batch": 8000 * 512,
        "recipe.data": "news, books, stories and web text; the 160 GB of RoBERTa",
    },
    sizes={
        "bart-base": Size(Dims(768, 6, 12, 3072, 50_265, 1024), published="140M", hub="facebook/bart-base"),
        "bart-large": Size(Dims(1024, 12, 16, 4096, 50_265, 1024), published="400M", hub="facebook/bart-large"),
        "bart-large-cnn": Size(
            Dims(1024, 12, 16, 4096, 50_264, 1024),
            {"arch.dropout": Dropout(embed=0.1, residual=0.1)},
            published="400M",
            hub="facebook/bart-large-cnn",
            note="bart-large trained on the summaries of CNN/DailyMail; no embedding of the mask token",
        ),
        "bart-large-xsum": Size(
            Dims(1024, 12, 16, 4096, 50_264, 1024),
            {"arch.dropout": Dropout(embed=0.1, residual=0.1)},
            published="400M",
            hub="facebook/bart-large-xsum",
            note="bart-large trained on the one-sentence summaries of XSum; no embedding of the mask token",
        ),
        "bart-large-mnli": Size(
            Dims(1024, 12, 16, 4096, 50_265, 1024),
            {"arch.heads": CLASSIFY, "arch.dropout": Dropout(embed=0.1, residual=0.1)},
            published="400M",
            hub="facebook/bart-large-mnli",
            note="bart-large trained on MNLI: contradiction, neutral, entailment",
        ),
    },
    about=About(
        2019,
        "BART: Denoising Sequence-to-Sequence Pre-training for Natural Language Generation, Translation, and "
        "Comprehension",
        "arXiv:1910.13461",
        note="the peak rate and warm-up of pretraining are unpublished; dropout was off in its last tenth; "
        "a classifier reads the decoder's state at the last end token, the text being input to both halves",
    ),
    tasks={"classify": CLASSIFY, "answer": Heads(task=Answer())},
    others=("gpt1",),
)

mbart = bart.evolve(
    "mbart",
    {
        "arch.residual": PreNorm(),
        "arch.embed_scale": True,
        "arch.dropout": Dropout(embed=0.1, residual=0.1),
        "objective": Denoise(infill=0.35, mean=3.5, permute=1.0),
        "text.tokenizer": "unigram",
        "text.start_id": None,
        "text.shift": "last",
        "text.extras": tuple(CODES.split()),
        "recipe.optimizer": AdamW(beta2=0.98, eps=1e-6, weight_decay=0.0),
        "recipe.batch": None,
        "recipe.sampling": Sampling(0.7, unit="row"),
        "recipe.data": "CC25: 25 languages of Common Crawl, smaller ones drawn more often",
    },
    sizes={
        "mbart-large-cc25": Size(
            Dims(1024, 12, 16, 4096, 250_027, 1024),
            published="680M",
            aliases=("mbart-large",),
            hub="facebook/mbart-large-cc25",
        ),
        "mbart-large-en-ro": Size(
            Dims(1024, 12, 16, 4096, 250_027, 1024),
            {"text.start_id": 250_020},
            published="680M",
            hub="facebook/mbart-large-en-ro",
            note="trained on English to Romanian; decoders start from ro_RO",
        ),
        "mbart-large-50": Size(
            Dims(1024, 12, 16, 4096, 250_054, 1024),
            {"text.start_id": 2},
            published="680M",
            aliases=("mbart-50",),
            hub="facebook/mbart-large-50",
        ),
        "mbart-large-50-many-to-many-mmt": Size(
            Dims(1024, 12, 16, 4096, 250_054, 1024),
            {"arch.mlp.act": "relu", "text.start_id": 2},
            published="680M",
            hub="facebook/mbart-large-50-many-to-many-mmt",
            note="trained on translation between 50 languages; the first token of an answer is the language's code",
        ),
        "mbart-large-50-one-to-many-mmt": Size(
            Dims(1024, 12, 16, 4096, 250_054, 1024),
            {"arch.mlp.act": "relu", "text.start_id": 2},
            published="680M",
            hub="facebook/mbart-large-50-one-to-many-mmt",
        ),
        "mbart-large-50-many-to-one-mmt": Size(
            Dims(1024, 12, 16, 4096, 250_054, 1024),
            {"arch.mlp.act": "relu", "text.start_id": 2},
            published="680M",
            hub="facebook/mbart-large-50-many-to-one-mmt",
        ),
    },
    about=About(
        2020,
        "Multilingual Denoising Pre-training for Neural Machine Translation",
        "arXiv:2001.08210; mBART-50: arXiv:2008.00401",
        note="a text ends with </s> and its language's code; a decoder starts from the code (mBART-50: from </s>, and "
        "forces the code as the first token); in mBART-50 the code stands before a text instead",
    ),
)
