"""The vocabulary in which an architecture is declared: roles (which norm, which position, which mask) and sizes.

Everything here is a frozen value and imports no torch; the modules of `stemma.nn` build what these values say.
`Arch` names roles and holds no widths; `Dims` holds the widths. A component is built from both.
"""

from stemma.nn.parts.arch import Arch, Dropout, Streams, Structure
from stemma.nn.parts.attention import Attention
from stemma.nn.parts.custom import CustomMLP, CustomNorm, CustomPosition
from stemma.nn.parts.dims import Dims, gated_width
from stemma.nn.parts.heads import (
    Answer,
    Choose,
    Classify,
    ContextDetector,
    Detector,
    EMDHead,
    Heads,
    LMHead,
    MLMHead,
    Summary,
    Tag,
    Task,
)
from stemma.nn.parts.init import FanIn, Glorot, LeCun, Normal
from stemma.nn.parts.masks import Causal, Cycle, Full, LayerMask, Mask, Memory, Open, Prefix, Recall, Reverse, Sliding
from stemma.nn.parts.mlp import MLP, Activation, Convolution, Experts, GatedMLP
from stemma.nn.parts.norms import HeadNorm, LayerNorm, Norm, RMSNorm
from stemma.nn.parts.positions import (
    BlankLearned,
    BlankRotary,
    Buckets,
    Disentangled,
    LayerBuckets,
    Learned,
    Position,
    RelativeSinusoidal,
    Rotary,
    Sinusoidal,
)
from stemma.nn.parts.residuals import DeepNorm, Parallel, PostNorm, PreNorm, Residual, Sandwich
from stemma.nn.parts.scalings import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    NTKScaling,
    PowerScaling,
    Scaling,
    TruncatedScaling,
    YarnScaling,
)

__all__ = [
    "MLP",
    "Activation",
    "Answer",
    "Arch",
    "Attention",
    "BlankLearned",
    "BlankRotary",
    "Buckets",
    "Causal",
    "Choose",
    "Classify",
    "ContextDetector",
    "Convolution",
    "CustomMLP",
    "CustomNorm",
    "CustomPosition",
    "Cycle",
    "DeepNorm",
    "Detector",
    "Dims",
    "Disentangled",
    "Dropout",
    "DynamicScaling",
    "EMDHead",
    "Experts",
    "FanIn",
    "Full",
    "GatedMLP",
    "Glorot",
    "HeadNorm",
    "Heads",
    "LMHead",
    "LayerBuckets",
    "LayerMask",
    "LayerNorm",
    "LeCun",
    "Learned",
    "LinearScaling",
    "Llama3Scaling",
    "MLMHead",
    "Mask",
    "Memory",
    "NTKScaling",
    "Norm",
    "Normal",
    "Open",
    "Parallel",
    "Position",
    "PostNorm",
    "PowerScaling",
    "PreNorm",
    "Prefix",
    "RMSNorm",
    "Recall",
    "RelativeSinusoidal",
    "Residual",
    "Reverse",
    "Rotary",
    "Sandwich",
    "Scaling",
    "Sinusoidal",
    "Sliding",
    "Streams",
    "Structure",
    "Summary",
    "Tag",
    "Task",
    "TruncatedScaling",
    "YarnScaling",
    "gated_width",
]
