"""Data that models make: instructions from a few seeds (self-instruct: Wang et al. 2022, arXiv:2212.10560, and the
shorter form of Alpaca, Taori et al. 2023), and a teacher's explanations of its answers (Orca: Mukherjee et al. 2023,
arXiv:2306.02707). Asked for, parsed, filtered, kept in a folder, resumed."""
