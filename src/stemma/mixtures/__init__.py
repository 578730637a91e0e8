"""Mixtures of instruction data as published: FLAN 2021 (Wei et al. 2021, arXiv:2109.01652), the Flan collection of 2022
(Chung et al. 2022, arXiv:2210.11416; Longpre et al. 2023, arXiv:2301.13688), Tulu 1 and 2: tasks with clusters and
templates, the forms of their rows, caps and rates, and the rows themselves."""
