"""Processes that run cases one after another, each limited; one that dies, hangs or has run enough is replaced."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from fuzz.cases import Case, Subjects
from fuzz.tries import Tried, attempt, prepare

BATCH = 150  # cases of a process
QUIET = 60.0  # seconds after which a case that has not ended and did not compute hangs
MODULES = (
    "torch", "tokenizers", "sentencepiece", "safetensors.torch", "pyarrow.parquet", "gguf", "rich.console", "rich.table", "jinja2", "yaml",
    "stemma.train.midway", "stemma.report", "stemma.planning", "stemma.decoding", "stemma.formats.gguf", "stemma.formats.meta",
    "stemma.formats.fairseq", "stemma.formats.llama2c", "stemma.cli.models", "stemma.cli.training", "stemma.cli.data", "stemma.cli.show",
    "stemma.cli.checkpoint", "stemma.cli.planning", "stemma.cli.lookup", "stemma.data.cleaned", "stemma.data.survey", "stemma.parallel.checkpoint",
    "stemma.train.run", "stemma.text.spm", "stemma.report.page", "stemma.tuning.predicting", "stemma.tuning.run", "stemma.cli.tuning",
    "stemma.cli.predicting", "stemma.cli.merging", "sklearn.metrics", "scipy.stats", "seqeval.metrics", "sacrebleu", "rouge_score.rouge_scorer",
)  # fmt: skip


def warm() -> None:
    """Import what cases need, so that each process begins with it."""
    from stemma.families import tree

    tree()
    for name in MODULES:
        importlib.import_module(name)
    import torch

    from stemma.executor import native as executor
    from stemma.quantize import native
    from stemma.tuning import predicting

    native.kernels()  # compiled before a case is watched
    executor.library()
    predicting.measured.__defaults__ = (20, predicting.LIKELIEST)  # intervals of few draws, which take no time
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


def run(cases: Iterable[tuple[int, Case]], subjects: Subjects) -> Iterator[tuple[int, Case, Tried]]:
    """What each case came to, in order. `cases`: (number, case)."""
    walk = iter(cases)
    while batch := [pair for _, pair in zip(range(BATCH), walk, strict=False)]:
        while batch:
            done = 0
            for number, case, tried in _process(batch, subjects):
                done += 1
                yield number, case, tried
            batch = batch[done:]


def _process(batch: list[tuple[int, Case]], subjects: Subjects) -> Iterator[tuple[int, Case, Tried]]:
    """The cases of one process, up to the one at which it died."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _serve(batch, subjects, writing)
    os.close(writing)
    left = list(batch)
    ended = False
    try:
        for line in _lines(reading, pid):
            number, case = left.pop(0)
            yield number, case, Tried(**json.loads(line))
    except TimeoutError:
        number, case = left.pop(0)
        yield number, case, Tried(code=-1, problems=[f"hangs: nothing happened in {QUIET:.0f} s"])
        ended = True
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        shutil.rmtree(subjects.home / "case", ignore_errors=True)
    if left and not ended:
        number, case = left.pop(0)
        err = (subjects.home / "stderr").read_text("utf-8", "replace")[-500:]
        code = os.waitstatus_to_exitcode(status)
        why = f"ends by {signal.Signals(-code).name}" if code < 0 else f"ends the process with {code}"
        why = "hangs: it takes too long" if code == -signal.SIGPROF else why
        yield number, case, Tried(code=code, err=err, problems=[why])


def _processor(pid: int) -> float:
    """Seconds of the processor that a process has had: how long a case takes is another limit's, on a busy machine too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _lines(reading: int, pid: int) -> Iterator[bytes]:
    held, end, used = b"", time.monotonic() + QUIET, _processor(pid)
    while True:
        if not select.select([reading], [], [], max(0.0, end - time.monotonic()))[0]:
            now = _processor(pid)
            if now - used < QUIET / 60:
                raise TimeoutError
            end, used = time.monotonic() + QUIET, now
            continue
        if not (got := os.read(reading, 1 << 16)):
            return
        *whole, held = (held + got).split(b"\n")
        yield from whole
        end = time.monotonic() + QUIET


def _serve(batch: list[tuple[int, Case]], subjects: Subjects, writing: int) -> None:
    """Run cases in the process that was forked, and say what they came to."""
    code = 1
    try:
        prepare(subjects.home)
        for _, case in batch:
            tried = attempt(case, subjects, subjects.home / "case")
            tried.out, tried.err = tried.out[-2000:], tried.err[-2000:]
            line = memoryview(json.dumps(asdict(tried)).encode() + b"\n")
            while line:
                line = line[os.write(writing, line) :]
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def fresh(home: Path) -> Subjects:
    """The subjects of a new folder."""
    shutil.rmtree(home, ignore_errors=True)
    return Subjects(home)
