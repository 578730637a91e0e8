"""What a family file imports: the words in which a family is declared (see `stemma.declare`)."""

from stemma.declare.family import About, Design, Family, Size, Text, like
from stemma.declare.tuning import (
    RL,
    SFT,
    Instructions,
    LoRA,
    Preferences,
    Pretraining,
    RejectionSampling,
    RewardModel,
    SoftPrompt,
    Source,
    Stage,
    Tuning,
    Turns,
)

__all__ = [
    "RL",
    "SFT",
    "About",
    "Design",
    "Family",
    "Instructions",
    "LoRA",
    "Preferences",
    "Pretraining",
    "RejectionSampling",
    "RewardModel",
    "Size",
    "SoftPrompt",
    "Source",
    "Stage",
    "Text",
    "Tuning",
    "Turns",
    "like",
]
