"""The layout of public UniLM checkpoints (version 1): BERT's names of tensors, with more rows of segments.

The authors' repository has weights alone (`unilm1-base-cased.bin`): they go into a folder as `pytorch_model.bin`,
beside BERT's vocab.txt and a config.json with `"model_type": "unilm"`. Two keys of it say which segments a source and
what is written for it have; the files were trained with 4 and 5.
"""

from __future__ import annotations

from dataclasses import replace

from stemma.families.unilm import unilm as family
from stemma.formats.hf_bert import bert, task_classes
from stemma.formats.keys import key, with_defaults
from stemma.nn.parts import Heads, MLMHead, Summary

EVERY = Heads(MLMHead(), pooler=Summary(), pair=True)

unilm = replace(
    bert,
    model_type="unilm",
    families=("unilm",),
    classes={
        "BertForPreTrainingLossMask": EVERY,
        "BertForSeq2SeqDecoder": EVERY,
        "BertForMaskedLM": Heads(MLMHead()),
        "BertModel": Heads(pooler=Summary()),
        **task_classes("Bert", family),
    },
    keys=(
        *with_defaults(bert.keys, vocab_size=28_996, type_vocab_size=6, eos_token_id=102),
        key("source_type_id", "arch.mask.source", default=4),
        key("target_type_id", "arch.mask.target", default=5),
        key("mask_token_id", "text.mask_id", default=103),
    ),
)
