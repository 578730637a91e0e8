"""Small encoders that learned from large ones, and sentence encoders made of them."""

from stemma.declare.family import About, Size
from stemma.declare.objectives import AttentionDistillation, Contrastive, Distillation
from stemma.declare.recipes import AdamW, Schedule
from stemma.families.bert import bert, roberta
from stemma.nn.parts import Choose, Classify, Dims, Heads, Summary

distilbert = bert.evolve(
    "distilbert",
    {
        "arch.heads.pooler": None,
        "arch.heads.pair": False,
        "arch.init.truncated": False,
        "objective": Distillation("bert-base-uncased"),
        "recipe.optimizer": AdamW(beta2=0.98, eps=1e-6, weight_decay=0.0),
        "recipe.lr": 5e-4,
        "recipe.schedule": Schedule("linear"),
        "recipe.batch": None,
        "recipe.steps": None,
        "recipe.clip": 5.0,
    },
    sizes={
        "distilbert-base-uncased": Size(
            Dims(768, 6, 12, 3072, 30_522, 512),
            published="66M",
            aliases=("distilbert-base",),
            hub="distilbert/distilbert-base-uncased",
        ),
        "distilbert-base-cased": Size(
            Dims(768, 6, 12, 3072, 28_996, 512),
            {"text.lower": False, "objective.teacher": "bert-base-cased"},
            published="65M",
            hub="distilbert/distilbert-base-cased",
        ),
        "distilbert-base-multilingual-cased": Size(
            Dims(768, 6, 12, 3072, 119_547, 512),
            {
                "text.lower": False,
                "objective.teacher": "bert-base-multilingual-cased",
                "recipe.data": "Wikipedia in 104 languages",
            },
            published="134M",
            aliases=("distilmbert",),
            hub="distilbert/distilbert-base-multilingual-cased",
        ),
    },
    about=About(
        2019,
        "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter",
        "arXiv:1910.01108",
        note="half of the teacher's layers, begun as every second one; no segments and no pooler; rates rise over the "
        "first 5 % of the steps; up to 4,000 texts a step; rates and weights as in its training script, which also "
        "drew rarer tokens as targets more often (counts to the power of -0.7) and froze the positions: not done here",
    ),
    tasks={
        **bert.tasks,
        "classify": Heads(task=Classify(summary=Summary(act="relu", dropout=0.0), dropout=0.2)),
        "choose": Heads(task=Choose(summary=Summary(act="relu", dropout=0.0), dropout=0.2)),
    },
)

distilroberta = roberta.evolve(
    "distilroberta",
    {
        "objective": Distillation("roberta-base"),
        "recipe.optimizer": AdamW(beta2=0.98, eps=1e-6, weight_decay=0.0),
        "recipe.lr": 5e-4,
        "recipe.schedule": Schedule("linear"),
        "recipe.batch": None,
        "recipe.steps": None,
        "recipe.clip": 5.0,
        "recipe.mixed": False,
        "recipe.data": "OpenWebText",
    },
    sizes={
        "distilroberta-base": Size(
            Dims(768, 6, 12, 3072, 50_265, 512, segments=1), published="82M", hub="distilbert/distilroberta-base"
        )
    },
    about=About(
        2019,
        "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter",
        "arXiv:1910.01108; the model's card",
        note="DistilBERT's procedure on RoBERTa; the body is RoBERTa's own with half of the layers",
    ),
    others=("distilbert",),
)

minilm = bert.evolve(
    "minilm",
    {
        "objective": AttentionDistillation("bert-base-uncased"),
        "recipe.lr": 5e-4,
        "recipe.schedule.warmup": 4000,
        "recipe.batch": 1024 * 512,
        "recipe.steps": 400_000,
    },
    sizes={
        "minilm-l12-h384-uncased": Size(
            Dims(384, 12, 12, 1536, 30_522, 512, segments=2),
            published="33M",
            hub="microsoft/MiniLM-L12-H384-uncased",
        ),
        "minilm-l6-h384-uncased": Size(
            Dims(384, 6, 12, 1536, 30_522, 512, segments=2),
            hub="nreimers/MiniLM-L6-H384-uncased",
            note="every second layer of the one with 12, by the authors of Sentence-BERT",
        ),
    },
    about=About(
        2020,
        "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers",
        "arXiv:2002.10957",
        note="the network is BERT's; the public files hold the body and its pooler alone, and the heads that its "
        "design has come from BERT; whether the texts were masked is unpublished, and here they are not",
    ),
)

all_minilm = minilm.trained(
    "all-minilm",
    {
        "objective": Contrastive(),
        "recipe.lr": 2e-5,
        "recipe.schedule.warmup": 500,
        "recipe.batch": 1024 * 128,
        "recipe.steps": 100_000,
        "recipe.data": "over a billion pairs of sentences from the web",
    },
    sizes={
        "all-minilm-l6-v2": Size(
            Dims(384, 6, 12, 1536, 30_522, 512, segments=2),
            published="22.7M",
            hub="sentence-transformers/all-MiniLM-L6-v2",
        ),
        "all-minilm-l12-v2": Size(
            Dims(384, 12, 12, 1536, 30_522, 512, segments=2),
            published="33.4M",
            hub="sentence-transformers/all-MiniLM-L12-v2",
        ),
    },
    about=About(
        2021,
        "all-MiniLM: sentence vectors",
        "the models' cards; arXiv:1908.10084 (Sentence-BERT)",
        note="a text's vector is the mean over its tokens, brought to length 1 (`stemma embed`); rows of 128 tokens; "
        "it went on from MiniLM; its pairs are questions and answers, titles and texts and more, here two neighbouring "
        "sentences",
    ),
)
