"""What a text may be, as the help of the commands that read one says it."""

GRAMMAR = """\b
A text is one of these, or several with commas between them:
  notes.txt, folder, "texts/*.txt"     text files; also .gz, .bz2, .xz, .zst
  rows.jsonl, .json, .csv, .parquet    rows with a field `text`
  saved/                               what datasets wrote with save_to_disk
  hf://org/name/config:split           streamed from the hub
  builtin:bible, builtin:docs, ...     see `stemma data list`
  "texts/{lang}/*.txt"                 the language, by the path
  "talks.en|talks.de"                  lines translated by each other
  a.txt@0.7,b.txt@0.3                  drawn with these weights

\b
Options follow a # and are joined by &, as in rows.jsonl#field=body&lang=de:
  field=body         the field or column with the text
  split=line         a document is a file, section, paragraph or line
  encoding=latin-1   of text that is not UTF-8 (UTF-16 with a mark is known)
  strict=yes         what cannot be read is an error and not passed over
  lang=de            the language of all; lang=none, group=none: none
  epochs=4           how often it may be read in training
  files=*.py:*.pyi   which files of a folder are read
  clean=exact:c4     steps of `stemma data clean` for it alone
"""
