"""The kinds of tokenizer, and what each family uses.

| kind | families | how text becomes pieces | unknown characters | specials around a text |
|---|---|---|---|---|
| `wordpiece` | BERT, ELECTRA, DistilBERT, MiniLM | words and single punctuation marks, greedy longest match, `##` inside words | `[UNK]` | `[CLS] A [SEP] B [SEP]` |
| `gpt-bpe` | GPT-1; XLM | lower-cased words, merges, `</w>` at a word's end | `<unk>` | none; XLM `</s> A </s>` |
| `bpe` | GPT-2; RoBERTa | GPT-2's pattern, merges of bytes, nothing lost | none exist | none; RoBERTa `<s> A </s></s> B </s>` |
| `unigram` | T5; ALBERT; XLM-R | NFKC, runs of white space become one `▁`, most probable pieces | bytes `<0x..>` | `A </s>`; ALBERT `[CLS] A [SEP]`; XLM-R `<s> A </s>` |
| `spm-bpe` | LLaMA, Mistral | spaces become `▁`, digits alone, merges of characters | bytes `<0x..>` | `<s> A` |

`unigram` and `spm-bpe` are trained by the SentencePiece library itself and then expressed as a `tokenizers` object;
the others by `tokenizers`. Of more than 8 million characters (unigram; 64 million for spm-bpe) every k-th line is used. All training is deterministic: same texts, same vocabulary, on any number of threads.
"""  # noqa: E501

from __future__ import annotations

from stemma.errors import UsageError, did_you_mean

KINDS = ("wordpiece", "bpe", "gpt-bpe", "unigram", "spm-bpe")

# The order in which roles take the first ids, as in the published vocabularies of each kind.
ORDER = {
    "wordpiece": ("pad", "unk", "cls", "sep", "mask", "bos", "eos"),
    "bpe": ("bos", "cls", "pad", "eos", "sep", "unk"),  # the mask comes last of all (RoBERTa)
    "gpt-bpe": ("unk", "bos", "eos", "pad", "cls", "sep", "mask"),
    "unigram": ("pad", "eos", "unk", "bos", "cls", "sep", "mask"),
    "spm-bpe": ("unk", "bos", "eos", "pad", "cls", "sep", "mask"),
}


def check(kind: str) -> str:
    """`kind` itself if it is known. Raises UsageError."""
    if kind not in KINDS:
        raise UsageError(f"unknown tokenizer kind {kind!r}{did_you_mean(kind, KINDS)} (known: {', '.join(KINDS)})")
    return kind
