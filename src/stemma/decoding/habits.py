"""The old name of `generation_config`, for scripts that import it."""

from stemma.decoding.generation_config import eos_ids as ends

__all__ = ["ends"]
