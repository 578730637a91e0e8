"""A fuzzer of everything that Stemma reads: files that it writes itself, damaged on purpose, and what commands say of them.

`make fuzz` runs it; `python -m fuzz --help` (with `tests` on the path) says how a case is run again.

`subjects`  whole folders that are right: models of each layout, tokenizers, texts, settings, runs
`edits`     what is done to a file, as plain data, so that a case is a line of JSON
`propose`   edits drawn for a file, by what the file is
`payloads`  contents that leave a mark if anything runs them
`cases`     a case: a subject, edits, a command; made from a seed
`tries`     one case in this process: what the command did, and what is wrong with that
`pool`      processes that run cases, are limited and are replaced when one dies
"""
