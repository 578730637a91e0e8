"""Conversations: read from rows of any known shape, written by a template, and which of their tokens are learnt.

talk = read(row)                       # messages, ShareGPT, Alpaca, prompt and completion, OASST trees
text = writer(tokenizer).write(talk)   # the text, and the spans of it that are the assistant's
example = encode(tokenizer, text)      # ids, and for each whether it is a target
"""

from stemma.conversations.dialogue import Dialogue
from stemma.conversations.shapes import Conversation, Turn, read, shape_of, trees
from stemma.conversations.targets import Example, encode, fit, prompt_ids
from stemma.conversations.templates import JinjaWriter, Text, TurnsWriter, Writer, writer

__all__ = [
    "Conversation", "Dialogue", "Example", "JinjaWriter", "Text", "Turn", "TurnsWriter", "Writer", "encode", "fit",
    "prompt_ids", "read", "shape_of", "trees", "writer",
]  # fmt: skip
