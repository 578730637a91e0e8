"""Instructions that a model writes itself from a few seeds (self-instruct: Wang et al. 2022, arXiv:2212.10560, and the
shorter form of Alpaca, Taori et al. 2023): asked for, parsed, filtered, kept in a folder, resumed."""
