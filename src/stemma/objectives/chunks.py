"""The next token in overlapping chunks of long documents (Pal et al. 2023, arXiv:2308.10882, and the released code)."""

from __future__ import annotations

from functools import partial

from stemma.declare import objectives as declared
from stemma.errors import DataError
from stemma.objectives import base
from stemma.objectives.clm import NextToken


class Chunked(NextToken, of=declared.Chunks):
    """Rows of one document each: its first `context` tokens, those from `stride` tokens later on, and so on, up to the
    row in which it ends, which is padded. Documents have no special tokens around them, as those of
    the released code. In evaluation chunks do not overlap, so that every token but a document's first is a target
    once."""

    streamed = False

    def __init__(self, spec: declared.Chunks, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.before, self.after, self.shared = [], [], False
        self.stride = max(1, round(self.context * (1 - spec.overlap)))

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        packer, stride = self.packer(view, once), self.context if once else self.stride
        here, short = packer.seek(cursor), 0
        while here is not None:
            document, epoch = packer.order[here.slot]
            rest = packer.length(document) - here.offset
            part = base.Slice(document, epoch, here.offset, min(rest, self.context + 1))
            on = base.Cursor(here.slot, here.offset + stride) if rest > self.context else base.Cursor(here.slot + 1)
            follow = packer.seek(on)
            if rest > 1:
                chunk = base.Chunk([part], part.tokens, here)
                yield partial(self.example, view, packer, chunk), follow or base.Cursor(packer.order.documents)
            short = 0 if rest > 1 else short + 1
            if short > 2 * len(view):
                raise DataError("there is nothing to predict: no document has two tokens")
            here = follow

    def tokens_without_target(self, view: base.View) -> int:
        return len(view)
