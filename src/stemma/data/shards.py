"""Tokenising in shards, by several processes; finished shards survive an interruption.

The text is cut into shards of whole documents, about SHARD bytes each. A shard's name is a hash of its text, the
tokenizer and the code of this package, so a finished shard can be used by any later build: after an interruption only
the missing ones are tokenised. A shard is written atomically and has a checksum. Shards are joined in the order of the
text, and the ids of a text do not depend on its neighbours, so the result has the same bytes for any number of
processes.

Each worker is a new Python process that reads jobs from a pipe. Nothing is forked from a parent with threads, the
caller's script is not run again, and a worker ends with the pipe when the parent is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stemma import disk, errors
from stemma.data import blocks, stamps
from stemma.data.encoding import Encoder, RowEncoder, flat, sentences
from stemma.errors import CheckpointError, ResourceError, UsageError

SHARD = 4_000_000  # bytes of text of a shard, about
BATCH = 1_000_000  # bytes tokenised at a time
UNKNOWN = 0.1  # share of unknown tokens above which a warning says that the tokenizer does not fit
MAGIC = b"stemma-shard-1\n"


class Job(NamedTuple):
    """A part of the spooled text: its offset, the bytes of each document, and the name of its shard."""

    offset: int
    sizes: tuple[int, ...]
    name: str

    @property
    def bytes(self) -> int:
        return sum(self.sizes)


class Encoded(NamedTuple):
    """A shard: concatenated `tokens` with their number for each document (`counts`), and concatenated `starts` of
    sentences with their number for each document (`marks`). Of long documents also where their further blocks begin, as
    tokens (`cuts`) and as bytes (`places`), with their number for each document (`divisions`)."""

    tokens: npt.NDArray[Any]
    counts: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int32]
    marks: npt.NDArray[np.int64]
    cuts: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    divisions: npt.NDArray[np.int64]


# ---------------------------------------------------------------- one shard


def encode(texts: Sequence[str], tokenizer: Encoder) -> Encoded:
    """The shard of `texts`. Raises CheckpointError if the tokenizer gives an id outside its vocabulary."""
    kind = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    parts: list[Encoded] = []
    begin = 0
    while begin < len(texts):
        end, size = begin, 0
        while end < len(texts) and size < BATCH:
            size += len(texts[end])
            end += 1
        part = texts[begin:end]
        if isinstance(tokenizer, RowEncoder):
            parts.append(_marked(tokenizer, part, kind))
            begin = end
            continue
        ids, ends, counts = flat(tokenizer, part)
        edges = np.concatenate(([0], np.cumsum(counts)))
        if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
            wrong = int(ids.max() if ids.max() >= tokenizer.vocab_size else ids.min())
            text = part[int(np.searchsorted(edges, int(np.argmax(ids == wrong)), side="right")) - 1]
            raise CheckpointError(
                f"the tokenizer gives id {wrong} for the text {text[:30]!r}, and its vocabulary has "
                f"{tokenizer.vocab_size} ids; its files do not belong together"
            )
        lengths = np.fromiter(map(len, part), np.int64, len(part))
        before = np.cumsum(lengths) - lengths  # characters before each text
        last = np.maximum.accumulate(ends + np.repeat(before, counts))
        places = [sentences(text) for text in part]
        starts, marks = _starts(last, edges, before, places)
        parts.append(Encoded(ids.astype(kind), counts, starts, marks, *_cuts(part, last, edges, before)))
        begin = end
    kinds = (kind, "<i8", "<i4", "<i8", "<i8", "<i8", "<i8")
    columns = [[np.empty(0, dtype), *(part[k] for part in parts)] for k, dtype in enumerate(kinds)]
    return Encoded(*(np.concatenate(column) for column in columns))


def _marked(encoder: RowEncoder, texts: Sequence[str], kind: np.dtype[Any]) -> Encoded:
    """The shard of rows, whose marks stand where those of sentences do. No row is divided."""
    rows = encoder.encode_rows(texts)
    ids, marks = (np.fromiter(itertools.chain.from_iterable(row[k] for row in rows), np.int64) for k in (0, 1))
    counts, many = (np.fromiter((len(row[k]) for row in rows), np.int64, len(rows)) for k in (0, 1))
    none = np.empty(0, np.int64)
    return Encoded(ids.astype(kind), counts, marks.astype("<i4"), many, none, none, np.zeros(len(rows), np.int64))


def _starts(
    last: npt.NDArray[np.int64],
    edges: npt.NDArray[np.int64],
    before: npt.NDArray[np.int64],
    places: Sequence[Sequence[int]],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """`starts` and `marks` of consecutive texts, of which sentences begin at `places`. `last`: the character that each
    token and those before it reach, `edges`: the texts' offsets in it, `before`: the characters before each text."""
    many = np.fromiter(map(len, places), np.int64, len(places))
    at = np.fromiter(itertools.chain.from_iterable(places), np.int64, int(many.sum())) + np.repeat(before, many)
    token = np.searchsorted(last, at, side="right")
    ends = np.repeat(edges[1:], many)
    found = np.unique(np.concatenate([edges[:-1][np.diff(edges) > 0], token[token < ends]]))
    text = np.searchsorted(edges, found, side="right") - 1
    return (found - edges[text]).astype("<i4"), np.bincount(text, minlength=len(places)).astype("<i8")


def _cuts(
    texts: Sequence[str], last: npt.NDArray[np.int64], edges: npt.NDArray[np.int64], before: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`cuts`, `places` and `divisions` of consecutive texts; `last`, `edges` and `before` as in `_starts`."""
    found = [blocks.cuts(text) for text in texts]
    many = np.fromiter(map(len, found), np.int64, len(found))
    at = np.fromiter(itertools.chain.from_iterable(found), np.int64, int(many.sum())) + np.repeat(before, many)
    token = np.minimum(np.searchsorted(last, at, side="right"), np.repeat(edges[1:], many)) - np.repeat(
        edges[:-1], many
    )
    places: list[int] = []
    for text, own in zip(texts, found, strict=True):
        sizes = (len(text[a:b].encode("utf-8")) for a, b in itertools.pairwise([0, *own]))
        places += itertools.accumulate(sizes)
    return token.astype("<i8"), np.asarray(places, dtype="<i8"), many.astype("<i8")


def save(path: Path, shard: Encoded) -> None:
    """Write a shard whole or not at all. Raises ResourceError."""
    head = json.dumps([[array.dtype.str, len(array)] for array in shard]).encode()
    body = MAGIC + struct.pack("<q", len(head)) + head + b"".join(array.tobytes() for array in shard)
    disk.write(path, body + hashlib.sha256(body).digest())


def load(path: Path) -> Encoded | None:
    """The shard in a file; None if there is none or its checksum is wrong."""
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    body, check = memoryview(raw)[:-32], raw[-32:]
    if not raw.startswith(MAGIC) or hashlib.sha256(body).digest() != check:
        return None
    at = len(MAGIC)
    (size,) = struct.unpack_from("<q", raw, at)
    at += 8
    arrays: list[npt.NDArray[Any]] = []
    for kind, count in json.loads(raw[at : at + size]):
        dtype = np.dtype(kind)
        begin = at + size + sum(array.nbytes for array in arrays)
        arrays.append(np.frombuffer(raw, dtype, count, begin))
    return Encoded(*arrays)


# ---------------------------------------------------------------- a worker


def _make(spool: Path, folder: Path, job: Job, tokenizer: Encoder) -> None:
    with open(spool, "rb") as file:
        file.seek(job.offset)
        texts = [file.read(size).decode("utf-8") for size in job.sizes]
    shard = encode(texts, tokenizer)
    save(folder / f"{job.name}.shard", shard)


def serve() -> None:
    """The main loop of a worker. It reads the tokenizer, then jobs, and answers each with None or the class and text of
    an error, until the pipe ends."""
    read, write = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print goes to stderr, not among the answers
    spool, folder, tokenizer = pickle.load(read)
    while True:
        try:
            job = pickle.load(read)
        except EOFError:
            return
        answer: tuple[str, str] | None = None
        try:
            _make(spool, folder, job, tokenizer)
        except Exception as error:
            answer = (type(error).__name__, " ".join(str(error).split()))
        pickle.dump(answer, write)
        write.flush()


class _Worker:
    """A worker process, which makes one shard at a time."""

    def __init__(self, greeting: bytes) -> None:
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        env = {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
        code = "from stemma.data.shards import serve; serve()"
        command = [sys.executable, "-c", code]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        self.greeting = greeting

    def make(self, job: Job) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(self.greeting + pickle.dumps(job))
            self.process.stdin.flush()
            self.greeting = b""
            answer = pickle.load(self.process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            code = self.process.wait()
            why = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise ResourceError(
                f"a process that tokenises ended early ({why}), perhaps out of memory; run the command again "
                "(finished shards are kept), or with fewer --workers"
            ) from error
        if answer is not None:
            kind, text = answer
            known = getattr(errors, kind, None)
            raise known(text) if known is not None else RuntimeError(f"{kind} in a process that tokenises: {text}")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


# ---------------------------------------------------------------- all shards


def cut(sizes: Sequence[int], limit: int | None = None) -> Iterator[tuple[int, int]]:
    """(first document, one past the last) of each shard."""
    begin = size = 0
    for i, count in enumerate(sizes):
        size += count
        if size >= (limit or SHARD):
            yield begin, i + 1
            begin, size = i + 1, 0
    if begin < len(sizes):
        yield begin, len(sizes)


def plan(spool: Path, sizes: Sequence[int], tokenizer: Encoder) -> list[Job]:
    """The jobs of a spooled text, in its order."""
    jobs = []
    with open(spool, "rb") as file:
        for begin, end in cut(sizes):
            own = tuple(sizes[begin:end])
            digest = hashlib.blake2b(MAGIC, digest_size=20)
            for part in (tokenizer.fingerprint, str(tokenizer.vocab_size), stamps.rules(), repr(own)):
                digest.update(f"{part}\0".encode())
            offset, left = file.tell(), sum(own)
            while left:
                block = file.read(min(left, 1 << 20))
                digest.update(block)
                left -= len(block)
            jobs.append(Job(offset, own, digest.hexdigest()))
    return jobs


def workers_for(jobs: int, workers: int | None) -> int:
    """The number of worker processes: `workers` or the number of cores, at most one a job. Raises UsageError."""
    if workers is not None and workers < 1:
        raise UsageError(f"workers is {workers}; at least 1 was expected")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # starting a process takes half a second, which one or two shards do not repay
    return max(1, min(workers if workers is not None else min(cores, jobs // 2), jobs))


def encoded(
    spool: Path,
    folder: Path,
    sizes: Sequence[int],
    tokenizer: Encoder,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, Encoded]]:
    """(index of the first document, shard) in the order of the text. Finished shards in `folder` are used; `workers`
    processes make the missing ones. Raises StemmaError; finished shards stay."""
    jobs, unk = plan(spool, sizes, tokenizer), getattr(tokenizer, "unk_id", None)
    missing = {job.name: job for job in jobs if not (folder / f"{job.name}.shard").exists()}
    total = sum(sizes)
    done = total - sum(job.bytes for job in missing.values())

    def count(job: Job) -> None:
        nonlocal done
        done = min(total, done + job.bytes)
        if progress is not None:
            progress(done, total)

    if progress is not None and missing and done:
        progress(done, total)
    number = workers_for(len(missing), workers) if missing else 1
    if number == 1:
        for job in missing.values():
            _make(spool, folder, job, tokenizer)
            count(job)
    else:
        _together(spool, folder, list(missing.values()), tokenizer, number, count)
    if progress is not None:
        progress(total, total)
    begin = unknown = tokens = 0
    for job in jobs:
        path = folder / f"{job.name}.shard"
        shard = load(path)
        if shard is None:
            warnings.warn(f"{path} is damaged; its part of the text is tokenised again", stacklevel=2)
            _make(spool, folder, job, tokenizer)
            shard = load(path)
            if shard is None:
                raise ResourceError(f"{path} is damaged again right after it was written; check the disk")
        if unk is not None:
            unknown += int(np.count_nonzero(shard.tokens == unk))
            tokens += len(shard.tokens)
        yield begin, shard
        begin += len(job.sizes)
    if unknown > UNKNOWN * tokens:
        warnings.warn(
            f"{unknown / tokens:.0%} of the text's tokens are unknown to the tokenizer, so it was made for other text; "
            "train one on this text (leave --tokenizer out), or take one that knows its script",
            stacklevel=2,
        )


def _together(
    spool: Path, folder: Path, jobs: list[Job], tokenizer: Encoder, number: int, count: Callable[[Job], None]
) -> None:
    """Make the shards with `number` worker processes. The first error stops all."""
    greeting = pickle.dumps((spool, folder, tokenizer))
    workers = [_Worker(greeting) for _ in range(number)]
    free: SimpleQueue[_Worker] = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def make(job: Job) -> Job:
        worker = free.get()
        try:
            worker.make(job)
        finally:
            free.put(worker)
        return job

    pool = ThreadPoolExecutor(number)
    try:
        waiting: set[Future[Job]] = set()
        rest = iter(jobs)
        while True:
            for job in rest:
                waiting.add(pool.submit(make, job))
                if len(waiting) >= 2 * number:
                    break
            if not waiting:
                return
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                count(future.result())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.stop()
        pool.shutdown(wait=True)
