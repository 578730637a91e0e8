"""Make `.venv` hold Stemma and what it needs. Standard library only; run through `make`.

    python scripts/setup.py [--extras corpus,dev]

Torch goes in first, pinned, as a build without CUDA, so that nobody downloads gigabytes by accident. TORCH
in the environment chooses another one:

    TORCH=cuda            the build that PyPI has (on Linux with CUDA)
    TORCH="<pip words>"   given to `pip install` as they stand, for example
                          TORCH="torch==2.12.0 --index-url https://download.pytorch.org/whl/rocm6.4"

A torch that fits and is in `.venv` already is kept. A stamp file lets a second run do nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "stemma-setup.json"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
PINNED = "torch==2.13.0"
OLDEST, BELOW = (2, 11), (3, 0)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
LARGE = ("nvidia-", "cuda-", "triton", "pytorch-triton")


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036
        stop(f"Python 3.11 or later is needed, this is {sys.version.split()[0]}; name another with `make PYTHON=...`")
    parser = argparse.ArgumentParser()
    parser.add_argument("--extras", default="corpus", help="comma-separated extras of pyproject.toml")
    extras = {e for e in parser.parse_args().extras.split(",") if e}
    unknown = extras - set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    if unknown:
        stop(f"pyproject.toml has no extra {sorted(unknown)[0]!r}")
    torch_words = os.environ.get("TORCH", "").strip()
    stamp = read_stamp()
    if fresh(stamp, extras, torch_words):
        return
    with lock():
        stamp = read_stamp()  # another run may have finished meanwhile
        if fresh(stamp, extras, torch_words):
            return
        start = time.monotonic()
        make_venv()
        if stamp.get("source") == digest():
            extras |= set(stamp.get("extras", []))
        STAMP.unlink(missing_ok=True)
        install_torch(torch_words)
        install_rest(extras)
        STAMP.write_text(json.dumps({"source": digest(), "extras": sorted(extras), "torch": torch_words}))
        say(f"ready in {time.monotonic() - start:.0f} s: {VENV} (extras: {', '.join(sorted(extras)) or 'none'})")


# ---------------------------------------------------------------- is there anything to do?


def digest() -> str:
    """What a set-up depends on, as a hash: dependencies, this script, and where the checkout lies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    parts = [json.dumps([project["project"], project["build-system"]], sort_keys=True), str(ROOT)]
    return hashlib.sha256("\n".join([*parts, Path(__file__).read_text()]).encode()).hexdigest()


def read_stamp() -> dict[str, object]:
    try:
        return dict(json.loads(STAMP.read_text()))
    except (OSError, ValueError):
        return {}


def fresh(stamp: dict[str, object], extras: set[str], torch_words: str) -> bool:
    same = stamp.get("source") == digest() and extras <= set(stamp.get("extras", []))  # type: ignore[call-overload]
    return same and torch_words in ("", stamp.get("torch")) and PYTHON.exists()


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Two runs of `make` at once take turns."""
    if os.name == "nt":
        yield
        return
    import fcntl

    with open(ROOT / "pyproject.toml") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------- the environment


def make_venv() -> None:
    works = PYTHON.exists() and run([str(PYTHON), "-c", "import pip"], check=False).returncode == 0
    if works:
        version = run([str(PYTHON), "-c", "import sys; print(*sys.version_info[:2])"]).stdout.split()
        if tuple(map(int, version)) < (3, 11):
            stop(f"{VENV} holds Python {'.'.join(version)}; Stemma needs 3.11 or later: remove it and run again")
    else:
        say(f"making {VENV} with Python {sys.version.split()[0]}")
        made = run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=False)
        if made.returncode:
            hint = " (on Debian and Ubuntu: apt install python3-venv)" if "ensurepip" in made.stdout else ""
            stop(f"`{sys.executable} -m venv` failed{hint}:\n{made.stdout}{made.stderr}")
    # 23.3 is the first pip whose dry run reads metadata without downloading whole wheels.
    pip("install", "-qq", "--upgrade", "pip>=23.3", what="pip")


def install_torch(words: str) -> None:
    have, cuda = installed_torch()
    version = tuple(int(n) for n in have.split("+")[0].split(".")[:2]) if have else ()
    if have and not words and OLDEST <= version < BELOW:
        say(f"torch: keeping {have}, which is in the environment already")
        return
    if words == "cuda":
        chosen, why = [PINNED], "asked for with TORCH=cuda"
        if have and cuda is None:
            chosen.append("--force-reinstall")
    elif words:
        chosen, why = shlex.split(words), "taken as given in TORCH"
    else:
        chosen, why = choose_torch()
    say(f"torch: {' '.join(chosen)} ({why})")
    pip("install", "-qq", *chosen, what="torch")
    have, cuda = installed_torch()
    if have is None:
        stop("torch is not in the environment after its installation; TORCH must name a torch requirement")
    if cuda is not None and not words:
        stop(
            f"pip installed torch {have} with CUDA {cuda}, which was not asked for; set TORCH=cuda to accept it, or "
            f'TORCH="{PINNED} --index-url {CPU_INDEX}"'
        )


def choose_torch() -> tuple[list[str], str]:
    """The words for pip, and why: the first source that gives a build without CUDA."""
    if not sys.platform.startswith("linux"):
        return [PINNED], "the build for this system has no CUDA"
    found = resolves_to_cpu()
    if found is True:
        return [PINNED], "pip's own index has a build without CUDA"
    if reachable(CPU_INDEX + "/torch/"):
        return [PINNED, "--index-url", CPU_INDEX], "PyTorch's index of builds without CUDA"
    reason = "gives a build with CUDA (gigabytes)" if found is False else "could not be asked"
    stop(
        f"no torch without CUDA was found: pip's own index {reason}, and {CPU_INDEX} cannot be reached; "
        'set TORCH=cuda to take the large build, or TORCH="<what to give to pip install>" (a wheel, or an --index-url)'
    )
    raise AssertionError


def resolves_to_cpu() -> bool | None:
    """Whether pip would take a torch without CUDA packages; None if it cannot tell. Reads metadata only."""
    words = ["install", "--dry-run", "--quiet", "--ignore-installed", "--only-binary=:all:", "--report", "-", PINNED]
    try:
        result = run([str(PYTHON), "-m", "pip", *words], check=False, timeout=90)
        names = [item["metadata"]["name"].lower() for item in json.loads(result.stdout)["install"]]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None
    return "torch" in names and not any(name.startswith(LARGE) for name in names)


def reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def installed_torch() -> tuple[str | None, str | None]:
    """Version and CUDA version of the environment's torch (None, None if there is none that imports)."""
    code = "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda]))"
    result = run([str(PYTHON), "-c", code], check=False)
    if result.returncode:
        return None, None
    version, cuda = json.loads(result.stdout.splitlines()[-1])
    return version, cuda


def install_rest(extras: set[str]) -> None:
    version, _ = installed_torch()
    constraint = VENV / "stemma-constraints.txt"
    constraint.write_text(f"torch=={version}\n")  # nothing that comes later may replace it
    name = f"{ROOT}[{','.join(sorted(extras))}]" if extras else str(ROOT)
    say(f"installing Stemma and its dependencies ({', '.join(sorted(extras)) or 'core'})")
    pip("install", "-qq", "--constraint", str(constraint), "--editable", name, what="the dependencies")


# ---------------------------------------------------------------- small helpers


def run(command: list[str], *, check: bool = True, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=check, timeout=timeout, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def pip(*words: str, what: str) -> None:
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *words]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    if result.returncode:
        stop(f"pip could not install {what} (its words are above); check the network, then run the same command again")


def say(text: str) -> None:
    print(f"set-up: {text}", file=sys.stderr, flush=True)


def stop(text: str) -> None:
    print(f"set-up: {text}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nset-up: stopped; run it again to go on", file=sys.stderr)
        raise SystemExit(130) from None
