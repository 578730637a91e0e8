"""The language in which families are declared: what a family is (`family`), what it is trained to predict
(`objectives`), how (`recipes`, `ramps`), and how its weights were trained on (`tuning`). Plain dataclasses; nothing
here imports torch."""
