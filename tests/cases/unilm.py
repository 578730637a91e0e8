"""UniLM: exact counts. (The reference library has no such model: see test_unilm.py.)"""

# BERT cased with four segments more: its own count and 4 x d_model
COUNTS = {"unilm-base": 108_932_934 + 4 * 768, "unilm-large": 334_661_958 + 4 * 1024}
BODIES = {"unilm-base": 108_313_344, "unilm-large": 333_583_360}
