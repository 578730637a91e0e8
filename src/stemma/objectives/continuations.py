"""Several answers to one prompt in a batch: the prompt is read once, and each answer sees it and itself.

Rows hold whole prompts with their answers, side by side without padding between them. An answer is a document of its
own whose root is the prompt (`Inputs.roots`), at the positions that follow the prompt's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stemma.nn.inputs import Inputs
from stemma.nn.model import IGNORED, Model
from stemma.objectives import base
from stemma.objectives.answers import MULTIPLE, trimmed
from stemma.objectives.packing import first_fit
from stemma.objectives.vocabulary import token_logprobs


class Answer(NamedTuple):
    """The ids of a prompt, and of an answer to it, whose tokens are the targets."""

    prompt: base.Ints
    ids: base.Ints


def answers(ids: base.Ints, marks: Sequence[int]) -> list[Answer]:
    """The texts of a row of comparisons: text k begins at mark 2k, its answer at mark 2k + 1."""
    ends = [*marks[2::2], len(ids)]
    return [Answer(ids[a:b], ids[b:end]) for a, b, end in zip(marks[::2], marks[1::2], ends, strict=True)]


class Tree(NamedTuple):
    """A prompt and the `answers` to it, each with its number in the batch."""

    prompt: base.Ints
    answers: list[tuple[int, base.Ints]]

    @property
    def size(self) -> int:
        """Tokens that are read: the last one of an answer is only predicted."""
        return len(self.prompt) + sum(len(ids) - 1 for _, ids in self.answers)


def trees(texts: Sequence[Answer]) -> list[Tree]:
    """Texts by their prompts, in the order in which prompts come first."""
    found: dict[bytes, Tree] = {}
    for number, (prompt, ids) in enumerate(texts):
        found.setdefault(prompt.tobytes(), Tree(prompt, [])).answers.append((number, ids))
    return list(found.values())


def read_tokens(texts: Sequence[Answer]) -> int:
    """The tokens that a decoder reads for these texts, each prompt once."""
    return sum(tree.size for tree in trees(texts))


def collate(texts: Sequence[Answer], padding: int) -> base.Batch:
    """A batch of texts for a decoder: rows (B T), and of all answers together, one behind another, the targets (N) and
    the places `where` (N) that predict them. `lengths`: targets of each text."""
    found = trees(texts)
    rows = [[found[i] for i in row] for row in first_fit([tree.size for tree in found])]
    width = -(-max(sum(tree.size for tree in row) for row in rows) // MULTIPLE) * MULTIPLE
    where: list[base.Ints] = [np.zeros(0, np.int64)] * len(texts)
    columns: list[list[base.Ints]] = [[], [], [], []]
    for i, row in enumerate(rows):
        parts: list[tuple[base.Ints, ...]] = []
        fill, document = i * width, 0
        for tree in row:
            root, prompt, start = document, len(tree.prompt), fill
            parts.append(_part(tree.prompt, 0, root, root))
            fill, document = fill + prompt, document + 1
            for number, ids in tree.answers:
                parts.append(_part(ids[:-1], prompt, document, root))
                where[number] = np.concatenate([[start + prompt - 1], np.arange(fill, fill + len(ids) - 1)])
                fill, document = fill + len(ids) - 1, document + 1
        for column, pieces in zip(columns, zip(*parts, strict=True), strict=True):
            column.append(np.concatenate(pieces))
    names = ("input_ids", "position_ids", "documents", "roots")
    fills = (padding, 0, base.PAD_DOCUMENT, base.PAD_DOCUMENT)
    batch = {name: trimmed(column, value) for name, column, value in zip(names, columns, fills, strict=True)}
    return batch | {"where": torch.from_numpy(np.concatenate(where))} | _targets(texts)


def _part(ids: base.Ints, position: int, document: int, root: int) -> tuple[base.Ints, ...]:
    size = len(ids)
    return ids, np.arange(position, position + size), np.full(size, document), np.full(size, root)


def _targets(texts: Sequence[Answer]) -> base.Batch:
    lengths = np.asarray([len(text.ids) for text in texts], np.int64)
    return {
        "targets": torch.from_numpy(np.concatenate([text.ids for text in texts]).astype(np.int64)),
        "lengths": torch.from_numpy(lengths),
    }


def collate_replies(texts: Sequence[Answer], padding: int, start: int) -> base.Batch:
    """A batch of texts for an encoder-decoder: prompts (P S), and replies (M T) with the prompt `source` of each."""
    found = trees(texts)
    source = np.zeros(len(texts), np.int64)
    for i, tree in enumerate(found):
        source[[number for number, _ in tree.answers]] = i
    labels = trimmed([text.ids for text in texts], IGNORED)
    read = [np.concatenate([[start], text.ids[:-1]]) for text in texts]
    batch = {
        "input_ids": trimmed([tree.prompt for tree in found], padding),
        "attention_mask": trimmed([np.ones(len(tree.prompt), np.int64) for tree in found], 0),
        "decoder_input_ids": trimmed(read, padding),
        "source": torch.from_numpy(source),
        "where": (labels.flatten() != IGNORED).nonzero().squeeze(1),
    }
    return batch | _targets(texts)


def hidden(model: Model, batch: base.Batch) -> Tensor:
    """What the head reads for each target of a batch: N D."""
    if "source" in batch:
        mask = batch["attention_mask"]
        encoded = model.encode(Inputs(batch["input_ids"], mask))
        source = batch["source"]
        target = Inputs(batch["decoder_input_ids"], encoder_hidden=encoded[source], encoder_mask=mask[source])
        out = model.decode(target)
    else:
        out = model.decode(
            Inputs(
                batch["input_ids"],
                position_ids=base.position_ids(model, batch, always=True),
                documents=batch["documents"],
                roots=batch["roots"],
                contexts=base.alone(model, batch),
            )
        )
    return out.flatten(0, 1).index_select(0, batch["where"])


def logprobs(model: Model, batch: base.Batch) -> Tensor:
    """The log-probability of each target of a batch, fp32: N."""
    return token_logprobs(model, hidden(model, batch), batch["targets"])


def summed(values: Tensor, lengths: Tensor) -> Tensor:
    """The sum of each text's values: N, M -> M."""
    return torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)
