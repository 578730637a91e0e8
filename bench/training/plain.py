"""ELECTRA and XLNet as one would write them around transformers' networks: an ordinary loop with AdamW and clipping."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.nn.model import IGNORED
from stemma.objectives.plm import hidden_from
from training import CLIP, DECAY, HEADS, LAYERS, LR, VOCAB, WIDTH
from training.rows import GOALS, Own


class Electra(nn.Module):
    """Generator and discriminator in one step: the same embeddings, logits of every place, samples in the masked ones."""

    def __init__(self, context: int) -> None:
        super().__init__()
        from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

        def config(width: int, heads: int) -> Any:
            return ElectraConfig(
                vocab_size=VOCAB, embedding_size=WIDTH, hidden_size=width, num_hidden_layers=LAYERS,
                num_attention_heads=heads, intermediate_size=4 * width, max_position_embeddings=context,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            )  # fmt: skip

        self.discriminator = ElectraForPreTraining(config(WIDTH, HEADS))
        self.generator = ElectraForMaskedLM(config(WIDTH // 4, HEADS // 4))
        self.generator.electra.embeddings = self.discriminator.electra.embeddings
        self.generator.tie_weights()

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        logits = self.generator(input_ids).logits.float()
        tokens = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        masked = labels != IGNORED
        with torch.no_grad():
            found = torch.multinomial(logits[masked].softmax(-1), 1).squeeze(1)
        filled = input_ids.clone()
        filled[masked] = found
        original = torch.where(masked, labels, input_ids)
        scores = self.discriminator(filled).logits.float()
        replaced = F.binary_cross_entropy_with_logits(scores, (filled != original).to(scores.dtype))
        return tokens + GOALS["electra"].weight * replaced


class Xlnet(nn.Module):
    """Both streams of transformers' XLNet, with logits of the targets only."""

    def __init__(self, context: int) -> None:
        super().__init__()
        from transformers import XLNetConfig, XLNetLMHeadModel

        config = XLNetConfig(
            vocab_size=VOCAB, d_model=WIDTH, n_layer=LAYERS, n_head=HEADS, d_inner=4 * WIDTH, dropout=0.0,
            mem_len=None, use_mems_eval=False, use_mems_train=False,
        )  # fmt: skip
        self.net = XLNetLMHeadModel(config)

    def forward(self, **batch: Tensor) -> Tensor:
        loss: Tensor = self.net(**batch).loss
        return loss


def electra_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    labels = torch.full_like(batch["input_ids"], IGNORED).flatten()
    labels[batch["where"]] = batch["targets"]
    return {"input_ids": batch["input_ids"], "labels": labels.view_as(batch["input_ids"])}


def xlnet_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    ids, places = batch["input_ids"], batch["places"]
    assert "where" not in batch, "a row has fewer targets than the objective asks for"
    mapping = F.one_hot(places, ids.shape[1]).float()
    return {
        "input_ids": ids,
        "token_type_ids": batch["token_type_ids"],
        "perm_mask": hidden_from(batch["order"], mapping.sum(1) > 0).float(),
        "target_mapping": mapping,
        "labels": batch["targets"].view_as(places),
    }


def plain(name: str, rows: Own, precision: str, compiled: bool) -> tuple[Callable[[], float], Any]:
    """A function that takes one step of the ordinary loop and returns the loss; its network. Compiled, with the fused
    optimiser too, as a careful writer would have it."""
    import transformers

    transformers.logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(1)
    context = rows.shape.context
    model: Any = (Electra(context) if name == "electra" else Xlnet(context)).to(device).train()
    convert = electra_batch if name == "electra" else xlnet_batch
    batches = itertools.cycle([convert(batch) for batch in rows.batches()])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, fused=compiled or None)
    if compiled:
        for net in model.children():  # what joins them has sizes that follow from the numbers
            net.compile()

    def step() -> float:
        batch = {k: v.to(device) for k, v in next(batches).items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = model(**batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return step, model
