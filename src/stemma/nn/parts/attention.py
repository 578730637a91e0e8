"""Attention: its biases and how scores are scaled."""

from __future__ import annotations

from dataclasses import dataclass

from stemma.nn.parts.norms import HeadNorm, LayerNorm, RMSNorm
from stemma.spec import Spec, positive, quiet, require


@dataclass(frozen=True)
class Attention(Spec):
    """Multi-head attention. `bias`: of q, k and v, of which k may go without (`key_bias`: DeBERTa); `out_bias`: of o;
    `scaled`: scores divided by sqrt(head width), or by sqrt(`scale_width`) where that is another; `qk_norm`: of each
    head's queries and keys, before they turn (Qwen 3); `softcap=c`: scores become c tanh(score / c) (Gemma 2);
    `by_layer`: those of layer i, from 1, are divided by i as well (`scale_attn_by_inverse_layer_idx` of GPT-2)."""

    bias: bool = True
    out_bias: bool = True
    key_bias: bool = True
    scaled: bool = True
    scale_width: float | None = positive(None)
    qk_norm: LayerNorm | RMSNorm | HeadNorm | None = None
    softcap: float | None = positive(None)
    by_layer: bool = quiet(False)

    def check(self) -> None:
        require(self.bias or self.key_bias, "attention.key_bias=false needs attention.bias=true: k has none anyway")
        require(self.scaled or self.scale_width is None, "attention.scale_width needs attention.scaled=true")
