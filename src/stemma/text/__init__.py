"""Tokenizers: text to ids and back, trained here or read from any of the published file layouts."""

from stemma.text.specials import Specials
from stemma.text.tokenizer import Tokenizer

__all__ = ["Specials", "Tokenizer"]
