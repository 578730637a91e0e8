"""A file as a user writes it for `--families`: an objective, the class that runs it, and a family trained on it."""

from dataclasses import dataclass

from stemma.declare.objectives import Objective
from stemma.families.declare import About
from stemma.families.gpt import gpt2
from stemma.objectives import base
from stemma.spec import at_least


@dataclass(frozen=True)
class Ahead(Objective):
    """Predict the token `places` places further on."""

    label = "tokens ahead"
    places: int = at_least(1, 2)


class TokensAhead(base.Objective, of=Ahead):
    structures = ("decoder",)

    def lazy_examples(self, view, cursor=base.Cursor(), once=False):
        packer = base.Packer(self.order(view, once), lambda d: len(view[d]), lambda d, _: view[d][None], once)
        size = self.context + self.spec.places
        for chunk, follow in packer.chunks(cursor, size, self.context):
            yield lambda chunk=chunk: {"ids": packer.row(chunk, size, [base.IGNORED]).values[0]}, follow

    def collate(self, examples):
        ids, n = base.stack(examples, "ids")["ids"], self.spec.places
        return {"input_ids": ids[:, :-n].clamp(min=0)} | base.targets(ids[:, n:])

    def loss(self, model, batch, nets=base.NO_NETS):
        hidden = model.decode(batch["input_ids"])
        return base.Loss({"token": self.token_loss(model, hidden, batch)}, self.counts(batch))


sizes, about = {"glance": gpt2.sizes["gpt2"]}, About(2026, "Glance", "an example", weights="none")
glance = gpt2.evolve("glance", {"objective": Ahead()}, sizes=sizes, about=about)
