"""Long rows: packed documents that do not see each other, attention dropout, and a large vocabulary.

A step (loss, gradient, AdamW) of networks of d_model 256 with 4 layers, in fp32, on 8,192 tokens of random ids: LLaMA's
on rows of 128 to 8,192 tokens that hold documents of 300 tokens on average; BERT's, with its dropout, on rows without
documents; and LLaMA's with 262,144 entries. `apart` is Stemma as it trains, `mixed` Stemma with `recipe.mixed`, where documents
see each other, and transformers has rows without documents.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from growth import Try, Work

SIDES = ("apart", "mixed", "transformers")
ALONE = ("apart", "transformers")
SHORT = (("s", 1.1),)  # rows of up to 1,024 tokens keep the bits of earlier runs, and with them the whole mask
WORKS = (
    Work("rows of 128", SHORT),
    Work("rows of 512", SHORT),
    Work("rows of 2048", (("s", 1.0), ("GB", 1.1))),
    Work("rows of 8192", (("s", 1.0), ("GB", 1.1))),
    Work("dropout, rows of 512", (), ALONE),
    Work("dropout, rows of 2048", (("s", 1.0), ("GB", 1.0)), ALONE),
    Work("vocabulary of 262144", (("s", 1.0), ("GB", 1.0)), ALONE),
)
TOKENS, LONG, DOCUMENT, STEPS, MASKED = 8192, 8192, 300, 2, 7
WIDTHS = {"d_model": 256, "layers": 4, "heads": 8, "vocab": 8192}


def make(one: Try) -> str:
    import stemma

    vocab = max(WIDTHS["vocab"], int(262_144 * one.scale))
    for name, size, more in (
        ("llama", "llama-7b", {"d_ff": 688}),
        ("bert", "bert-base", {"d_ff": 1024}),
        ("vocabulary", "llama-7b", {"d_ff": 688, "vocab": vocab}),
    ):
        stemma.build(size, **(WIDTHS | {"context": LONG} | more)).save(one.folder / name)
    return f"steps of {tokens(one)} tokens"


def tokens(one: Try) -> int:
    """Tokens of a step."""
    return max(128, int(TOKENS * one.scale))


def rows(one: Try) -> tuple[Any, Any, Any]:
    """Ids, numbers of documents and places in them, B T each."""
    import torch

    number = tokens(one)
    length = min(number, int(one.work.split()[-1]) if "rows" in one.work else 512)
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(5, WIDTHS["vocab"], (number // length, length), generator=draw)
    numbers, places = torch.zeros_like(ids), torch.zeros_like(ids)
    for row in range(len(ids)):
        at = document = 0
        while at < length:
            end = min(length, at + 1 + int(torch.empty(1).exponential_(1 / DOCUMENT, generator=draw)))
            numbers[row, at:end], places[row, at:end] = document, torch.arange(end - at)
            at, document = end, document + 1
    return ids, numbers, places


def warm(one: Try) -> None:
    import torch

    import stemma  # noqa: F401
    from stemma.train.pages import keep_pages

    if one.ours or one.side == "mixed":
        keep_pages()  # as its loop does
    else:
        import transformers  # noqa: F401
    torch.manual_seed(1)


def before(one: Try) -> Callable[[], None]:
    """A step, which was taken once."""
    import torch

    name = "bert" if "dropout" in one.work else "vocabulary" if "vocabulary" in one.work else "llama"
    model, loss = (_theirs if one.side == "transformers" else _ours)(one, one.folder / name, name == "bert")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return step


def work(one: Try, held: Callable[[], None]) -> dict[str, float]:
    began = time.perf_counter()
    for _ in range(STEPS):
        held()
    return {"s": (time.perf_counter() - began) / STEPS}


def _ours(one: Try, folder: Any, masked: bool) -> tuple[Any, Callable[[], Any]]:
    import stemma
    from stemma.nn.inputs import Inputs
    from stemma.objectives import base

    model = stemma.load(folder).train()
    ids, numbers, places = rows(one)
    batch = {"input_ids": ids, "documents": numbers, "position_ids": places}
    if one.side == "mixed" or masked:
        batch = {"input_ids": ids}
    batch |= base.targets(_labels(ids, masked))

    def loss() -> Any:
        inputs = Inputs(ids, position_ids=base.position_ids(model, batch), documents=batch.get("documents"))
        hidden = model.read(model.state(inputs)) if masked else model.decode(inputs)
        return base.token_loss(model, hidden, batch) / len(batch["targets"])

    return model, loss


def _labels(ids: Any, masked: bool) -> Any:
    """Targets: every token's next one, or one token in seven."""
    import torch

    if masked:
        return torch.where(torch.arange(ids.numel()).view_as(ids) % MASKED == 0, ids, -100)
    return torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], 1)


def _theirs(one: Try, folder: Any, masked: bool) -> tuple[Any, Callable[[], Any]]:
    from transformers import BertForMaskedLM, LlamaForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cls: Any = BertForMaskedLM if masked else LlamaForCausalLM
    model = cls.from_pretrained(folder).train()
    ids, _, _ = rows(one)
    labels = _labels(ids, True) if masked else ids  # a decoder shifts them itself
    return model, lambda: model(input_ids=ids, labels=labels).loss
