"""Models judged by a model (Zheng et al. 2023, arXiv:2306.05685): questions of two turns, pairwise verdicts in both
orders or a score for each answer, kept in a folder, resumed."""
