"""The step executor: one token a row of a built decoder as a flat tape of instructions in C, run by all threads in one
parallel region."""

from stemma.executor.executor import Executor, Reason, Step, mark, of, usable
from stemma.executor.many import fast_linear

__all__ = ["Executor", "Reason", "Step", "fast_linear", "mark", "of", "usable"]
