"""Models in GGUF files, the format of llama.cpp, in and out.

`read` makes a model of a file, `write` a file of a model. `tables` maps keys to fields of the design and
tensors to parameters, `parts` several of them to one property; `file` reads the bytes, `split` those of several files,
`quants` undoes the quantisation, `quantise` does it, `types` says what is written in which type, `vocab` makes the
tokenizer. A file of architecture `llama` has the rows of q and k in the order of Meta's
own code (see `formats.rotary`).
"""

from stemma.formats.gguf.file import File
from stemma.formats.gguf.read import load
from stemma.formats.gguf.split import open_file
from stemma.formats.gguf.tables import ARCHITECTURES

__all__ = ["ARCHITECTURES", "File", "load", "open_file"]
