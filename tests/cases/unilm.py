"""UniLM: exact counts. (The reference library has no such model: see test_unilm.py.)"""

COUNTS = {"unilm-base": 108_934_468, "unilm-large": 334_664_004}
BODIES = {"unilm-base": 108_313_344, "unilm-large": 333_583_360}
