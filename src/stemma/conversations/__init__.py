"""Conversations: read from rows of any known shape, written by a template, and which of their tokens are learnt.

talk = read(row)                       # messages, ShareGPT, Alpaca, prompt and completion, OASST trees
text = writer(tokenizer).write(talk)   # the text, and the spans of it that are the assistant's
example = encode(tokenizer, text)      # ids, and for each whether it is a target
"""

from stemma.conversations.dialogue import Dialogue
from stemma.conversations.jinja import JinjaWriter
from stemma.conversations.shapes import Conversation, Turn, is_text, read, shape_of, trees
from stemma.conversations.targets import Example, add_tokens, encode, fit, prompt_ids, unknown_tokens
from stemma.conversations.templates import TurnsWriter, writer
from stemma.conversations.texts import Text, Writer

__all__ = [
    "Conversation", "Dialogue", "Example", "JinjaWriter", "Text", "Turn", "TurnsWriter", "Writer", "add_tokens",
    "encode", "fit", "is_text", "prompt_ids", "read", "shape_of", "trees", "unknown_tokens", "writer",
]  # fmt: skip
