"""Learn from answers that were compared or liked, without a reward model: DPO with its variants, and KTO."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.conversations.comparisons import ranked, thumbs
from stemma.declare import alignment as declared
from stemma.nn.model import Model
from stemma.objectives import base, continuations, reference
from stemma.objectives.answers import MEASURED, singles
from stemma.objectives.continuations import Answer

SIGMA = 1.96  # half the width of an interval that holds 95 of 100 times

# ---------------------------------------------------------------- losses


def pair_losses(spec: declared.DPO, chosen: Tensor, rejected: Tensor) -> Tensor:
    """The loss of each pair, P. `chosen`, `rejected`: of each answer the log-probability under the policy less that
    under the reference, summed or averaged over its tokens."""
    if spec.loss == "odds":
        ratio = (chosen - log1mexp(chosen)) - (rejected - log1mexp(rejected))
        return -spec.beta * F.logsigmoid(ratio)
    if spec.loss == "ipo":
        return (chosen - rejected - 1 / (2 * spec.beta)).square()
    c, r, s = spec.beta * chosen, spec.beta * rejected, spec.smoothing
    if spec.loss == "apo_zero":
        return 1 - c.sigmoid() + r.sigmoid()
    if spec.loss == "apo_down":
        return c.sigmoid() + 1 - (c - r).sigmoid()
    d = c - r - spec.margin
    if spec.positive:
        d = d - spec.positive * (-c).clamp_min(0)
    if spec.loss == "hinge":
        return (1 - d).clamp_min(0)
    if spec.loss == "robust":
        return (-(1 - s) * F.logsigmoid(d) + s * F.logsigmoid(-d)) / (1 - 2 * s)
    return -(1 - s) * F.logsigmoid(d) - s * F.logsigmoid(-d) if s else -F.logsigmoid(d)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, exact near 0 and far from it (Maechler 2012)."""
    near = x > -math.log(2)
    return torch.where(near, (-torch.expm1(x.where(near, -1.0))).log(), torch.log1p(-x.where(~near, -1.0).exp()))


def thumb_losses(spec: declared.KTO, ratios: Tensor, liked: Tensor, z: Tensor) -> Tensor:
    """The loss of each answer, M. `ratios`: its log-probability under the policy less that under the reference;
    `liked`: M, booleans; `z`: the estimate of the divergence that each is measured from, M."""
    above = spec.beta * (ratios - z)
    good, bad = spec.desirable * (1 - above.sigmoid()), spec.undesirable * (1 - (-above).sigmoid())
    return torch.where(liked, good, bad)


def liked(row: str) -> bool:
    """Whether the answer of a row (JSON) was liked."""
    return bool(thumbs(json.loads(row))[0].liked)


def _right(margins: Tensor) -> Tensor:
    """1 for a margin above 0, a half for 0, which says nothing."""
    return (margins.sign() + 1) / 2


def interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's interval of 95 of 100 for a share of n (Wilson 1927)."""
    z = SIGMA**2 / n
    middle, half = share + z / 2, SIGMA * math.sqrt(share * (1 - share) / n + z / (4 * n))
    return (middle - half) / (1 + z), (middle + half) / (1 + z)


# ---------------------------------------------------------------- objectives


class Preference(base.Objective):
    """What both share: batches of answers, and their log-probabilities under the policy less those under the
    reference."""

    structures = ("decoder", "encoder-decoder")
    of_rows = records = True
    in_bits = False
    known: reference.Known | None = None  # what the reference said of the texts before the run

    def __init__(self, spec: Any, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.held = spec.reference != "none"

    def tie(self, model: Model, nets: base.Nets) -> None:
        if self.held and self.known is None:
            reference.check(model, nets)

    @staticmethod
    def texts(example: base.Example) -> list[Answer]:
        """All texts of an example that the reference judges."""
        return [*example["texts"], *example.get("others", ())]

    def answers(self, view: base.View, document: int) -> list[Answer]:
        """The texts of a row."""
        return continuations.answers(np.asarray(view[document]), view.sentences(document))

    def collated(self, texts: Sequence[Answer]) -> base.Batch:
        """A batch of texts; with what is known of the reference, `reference`: N."""
        beside = {} if self.known is None else {reference.ROLE: self.known.of(texts)}
        return self.plain_batch(texts) | beside

    def plain_batch(self, texts: Sequence[Answer]) -> base.Batch:
        """A batch of texts."""
        if self.setting.structure == "encoder-decoder":
            start = self.setting.text.start_id
            return continuations.collate_replies(texts, self.padding, self.padding if start is None else start)
        return continuations.collate(texts, self.padding)

    def ratios(self, model: Model, batch: base.Batch, nets: base.Nets) -> tuple[Tensor, Tensor]:
        """Of each target the log-probability under the policy, and what it is more than under the reference."""
        own = continuations.logprobs(model, batch)
        if not self.held:
            return own, own
        if (theirs := batch.get(reference.ROLE)) is not None:
            return own, own - theirs
        with reference.frozen(model, nets) as net:
            theirs = continuations.logprobs(net, batch)
        return own, own - theirs

    def measured(self, view: Any, answers: Sequence[tuple[int, Any]]) -> dict[str, float]:
        """The share that the rewards have right, with its interval."""
        if not answers:
            return {}
        share = sum(right for _, right in answers) / len(answers)
        low, high = interval(share, len(answers))
        return {"accuracy": share, "accuracy_low": low, "accuracy_high": high}

    def size(self, view: Any) -> int:
        found = [self.read_tokens(self.answers(view, i)) for i in range(min(len(view), MEASURED))]
        return self.rows * max(1, round(sum(found) / max(1, len(found))))

    def read_tokens(self, texts: Sequence[Answer]) -> int:
        """The tokens that are read for the texts of a row."""
        return continuations.read_tokens(texts)


class RunDPO(Preference, of=declared.DPO):
    """A row is an example: all of its pairs of different rank, as a mean."""

    main = "pair"

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        yield from singles(self, view, cursor, once)

    def example(self, view: base.View, document: int) -> base.Example:
        """The texts of a row, the best first, and its pairs."""
        found = ranked(json.loads(view.text(document))).pairs()
        pairs = [(pair.better, pair.worse) for pair in found if not pair.tied]
        return {"texts": self.answers(view, document), "pairs": pairs, "number": document}

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        begins = np.cumsum([0, *(len(e["texts"]) for e in examples)])[:-1]
        pairs = [(a + at, b + at) for e, at in zip(examples, begins, strict=True) for a, b in e["pairs"]]
        counts = np.asarray([len(e["pairs"]) for e in examples])
        return self.collated([text for e in examples for text in e["texts"]]) | {
            "pairs": torch.from_numpy(np.asarray(pairs, np.int64).reshape(-1, 2).T),
            "row": torch.from_numpy(np.repeat(np.arange(len(examples)), counts)),
            "pairs_of": torch.from_numpy(counts),
            "best": torch.from_numpy(begins),
            "numbers": torch.tensor([e["number"] for e in examples]),
        }

    def counts(self, batch: base.Batch) -> dict[str, int]:
        found = {self.main: int((batch["pairs_of"] > 0).sum())}
        return found | ({"sft": int(batch["lengths"][batch["best"]].sum())} if self.spec.sft else {})

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        lengths, (first, second), row = batch["lengths"], batch["pairs"], batch["row"]
        own, ratios = self.ratios(model, batch, nets)
        values = continuations.summed(ratios, lengths)
        if self.spec.averaged:
            values = values / lengths
        weight = 1.0 / batch["pairs_of"][row]
        sums = {self.main: (pair_losses(self.spec, values[first], values[second]) * weight).sum()}
        logps = continuations.summed(own, lengths)
        if self.spec.sft:
            sums["sft"] = -logps[batch["best"]].sum()
        return base.Loss(
            sums,
            self.counts(batch),
            self.metrics(batch, values.detach(), logps.detach(), ratios.detach(), weight),
            {"sft": self.spec.sft},
            [] if model.training else self.said(batch, values, weight),
        )

    def metrics(
        self, batch: base.Batch, values: Tensor, logps: Tensor, ratios: Tensor, weight: Tensor
    ) -> dict[str, float]:
        """Sums over rows: `reward_chosen`, `reward_rejected`, `margin` and `accuracy` of pairs, the log-probabilities
        of their answers, and with a reference `drift`: half the mean square of the log-ratio of a token, which is about
        the divergence from the reference on these answers."""
        first, second = batch["pairs"]
        reward = self.spec.beta * values
        found = {
            "reward_chosen": reward[first],
            "reward_rejected": reward[second],
            "margin": reward[first] - reward[second],
            "accuracy": _right(values[first] - values[second]),
            "logp_chosen": logps[first],
            "logp_rejected": logps[second],
        }
        if self.held:
            drift = continuations.summed(ratios.square(), batch["lengths"]) / (2 * batch["lengths"])
            found["drift"] = (drift[first] + drift[second]) / 2
        return {name: float((value * weight).sum()) for name, value in found.items()}

    def said(self, batch: base.Batch, values: Tensor, weight: Tensor) -> list[tuple[int, Any]]:
        """Of each row its number and the share of its pairs that the rewards order rightly."""
        first, second = batch["pairs"]
        right = torch.zeros(len(batch["numbers"]), device=values.device)
        right = right.index_add(0, batch["row"], _right(values[first] - values[second]) * weight)
        each = zip(batch["numbers"].tolist(), right.tolist(), batch["pairs_of"].tolist(), strict=True)
        return [(number, share) for number, share, pairs in each if pairs]


class RunKTO(Preference, of=declared.KTO):
    """An example is a group of rows, which share the estimate of the divergence."""

    main = "answer"

    def __init__(self, spec: declared.KTO, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.rows = spec.group

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        order, slot = self.order(view, once), cursor.slot
        while not (once and slot >= order.documents):
            size = self.spec.group
            if once and order.documents - slot - size <= 1:  # none is left over alone
                size = order.documents - slot
            chosen = [order[slot + i][0] for i in range(size)]
            slot += size
            yield partial(self.example, view, chosen), base.Cursor(slot)

    def example(self, view: base.View, chosen: Sequence[int]) -> base.Example:
        """The texts of a group, and each prompt with the answer of the row before."""
        texts = [self.answers(view, i)[0] for i in chosen]
        rooms = [self.context if self.setting.structure != "decoder" else self.context - len(t.prompt) for t in texts]
        others = [
            Answer(text.prompt, other.ids[: max(1, room)])
            for text, other, room in zip(texts, [texts[-1], *texts[:-1]], rooms, strict=True)
        ]
        return {"texts": texts, "others": others, "liked": [liked(view.text(i)) for i in chosen], "numbers": chosen}

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        def every(name: str) -> list[Any]:
            return [one for e in examples for one in e[name]]

        others = {f"other_{name}": tensor for name, tensor in self.collated(every("others")).items()}
        return self.collated(every("texts")) | others | {
            "liked": torch.tensor(every("liked")),
            "numbers": torch.tensor(every("numbers")),
            "groups": torch.tensor([len(e["texts"]) for e in examples]),
        }  # fmt: skip

    def counts(self, batch: base.Batch) -> dict[str, int]:
        return {self.main: len(batch["liked"])}

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        z = self.divergence(model, batch, nets)
        _, ratios = self.ratios(model, batch, nets)
        values, good = continuations.summed(ratios, batch["lengths"]), batch["liked"]
        losses = thumb_losses(self.spec, values, good, z)
        rewards, sign = self.spec.beta * values.detach(), torch.where(good, 1.0, -1.0)
        right = _right((rewards - self.spec.beta * z) * sign)
        n = float(good.sum()), float((~good).sum())
        return base.Loss(
            {self.main: losses.sum()},
            self.counts(batch),
            {
                "reward_chosen": float(rewards[good].sum()),
                "reward_rejected": float(rewards[~good].sum()),
                "accuracy": float(right.sum()),
                "kl": float(z.sum()),
            },
            answers=[] if model.training else [*zip(batch["numbers"].tolist(), right.tolist(), strict=True)],
            over={"reward_chosen": n[0], "reward_rejected": n[1]},
        )

    def divergence(self, model: Model, batch: base.Batch, nets: base.Nets) -> Tensor:
        """The estimate of each answer's group, M: the mean log-ratio of the mismatched answers, at least 0."""
        others = {name.removeprefix("other_"): x for name, x in batch.items() if name.startswith("other_")}
        with reference.still(model):
            _, ratios = self.ratios(model, others, nets)
        sums = continuations.summed(continuations.summed(ratios, others["lengths"]), batch["groups"])
        return (sums / batch["groups"]).clamp_min(0).repeat_interleave(batch["groups"])

    def read_tokens(self, texts: Sequence[Answer]) -> int:
        return 2 * continuations.read_tokens(texts)  # the mismatched ones too

    def remarks(self, view: Any, held: Any) -> list[str]:
        """Whether the weights balance how many answers were liked (section 4.2 of the paper: their ratio of 1 to
        4/3)."""
        good = sum(liked(view.text(i)) for i in range(len(view)))
        if not 0 < good < len(view):
            what = "liked" if good else "disliked"
            return [f"all {len(view):,} answers were {what}: nothing tells good ones from bad ones"]
        ratio = self.spec.desirable * good / (self.spec.undesirable * (len(view) - good))
        if 0.99 <= ratio <= 4 / 3 + 0.01:
            return []
        right = (len(view) - good) / good * self.spec.undesirable
        return [
            f"{good:,} of {len(view):,} answers were liked, which weigh {ratio:.2g} times the others; 1 to 1.33 is "
            f"advised: objective.desirable={right:.3g}"
        ]
