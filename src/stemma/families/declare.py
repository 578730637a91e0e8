"""What a family file imports: the words in which a family is declared (see `stemma.declare`)."""

from stemma.declare.family import About, Design, Family, Size, Stage, Text, Tuning, like

__all__ = ["About", "Design", "Family", "Size", "Stage", "Text", "Tuning", "like"]
