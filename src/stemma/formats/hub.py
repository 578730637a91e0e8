"""Checkpoints from a hub: only the files that are needed, through `huggingface_hub`, its cache and `HF_ENDPOINT`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from stemma.errors import CheckpointError, ResourceError, StemmaError, UsageError
from stemma.formats.tensors import INDEX, SINGLE, first_line, weight_files

SMALL = (".json", ".model", ".txt", ".jinja")  # configs and tokenizers
SHARD = r"-\d{5}-of-\d{5}"
WAIT = 10.0  # seconds for an answer


def fetch(repo: str, revision: str | None = None) -> Path:
    """The local folder of the repository `org/name`: configs, tokenizer and weights, safetensors where there are any.

    If the hub cannot be reached, or HF_HUB_OFFLINE is set, what an earlier call left in the cache. Raises UsageError if
    there is no such repository, CheckpointError if it holds no weights and ResourceError if nothing can be had.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RevisionNotFoundError

    at = f" at revision {revision!r}" if revision else ""
    if constants.HF_HUB_OFFLINE:
        return _cached(repo, revision, f"HF_HUB_OFFLINE is set and the cache does not hold {repo!r}{at}")
    try:
        # asked once and without retries, so that a wrong name or a dead network is known at once
        siblings = HfApi().model_info(repo, revision=revision, timeout=WAIT).siblings or []
        wanted = choose(repo, [s.rfilename for s in siblings])
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except StemmaError:
        raise
    except HFValidationError:
        raise UsageError(f"{repo!r} is neither a folder nor a hub id of the form org/name") from None
    except GatedRepoError:
        raise UsageError(
            f"{repo!r} is gated: accept its terms on {constants.ENDPOINT}/{repo} and set HF_TOKEN to a token of yours"
        ) from None
    except RevisionNotFoundError:
        raise UsageError(f"{repo!r} of {constants.ENDPOINT} has no revision {revision!r}") from None
    except Exception as error:  # which classes the network's errors have depends on the library's version
        status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
        if status in (401, 403, 404):
            raise UsageError(
                f"{repo!r} is neither a folder here nor a repository of {constants.ENDPOINT} that you may read"
            ) from None
        why = f"{repo!r} is no folder here, and cannot be had from {constants.ENDPOINT}: {first_line(error)}"
        return _cached(repo, revision, why)


def choose(repo: str, files: Sequence[str]) -> list[str]:
    """The files of a repository that a load reads. Raises CheckpointError if they are not there.

    Others stay where they are: weights of other frameworks, second copies, everything in subfolders.
    """
    small = [f for f in files if f.endswith(SMALL) and "/" not in f and f not in INDEX]
    small += [f for f in files if re.fullmatch(r"\d+_\w+/config\.json", f)]  # how a sentence's vector is made
    if "config.json" not in small:
        raise CheckpointError(f"{repo!r} has no config.json, so it cannot be told what model it holds")
    for single, index in zip(SINGLE, INDEX, strict=True):
        if single in files:
            return [*small, single]
        if index in files:
            stem, _, ending = single.rpartition(".")
            return [*small, index, *(f for f in files if re.fullmatch(rf"{stem}{SHARD}\.{ending}", f))]
    raise CheckpointError(f"{repo!r} holds no weights that can be read: {SINGLE[0]} or {SINGLE[1]}, in shards or not")


def _cached(repo: str, revision: str | None, why: str) -> Path:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json", revision=revision)
    if not isinstance(config, str):
        raise ResourceError(why)
    try:
        weight_files(Path(config).parent)
    except CheckpointError:  # a download that broke off
        raise ResourceError(f"{why}; the cache has only a part of it") from None
    return Path(config).parent
