"""Checkpoints from a hub: only the files that are needed, through `huggingface_hub`, its cache and `HF_ENDPOINT`."""

from __future__ import annotations

from pathlib import Path

from stemma.errors import ResourceError, UsageError

SMALL = ("*.json", "*.model", "*.txt", "*.jinja")


def fetch(repo: str, revision: str | None = None) -> Path:
    """The local folder of the repository `org/name`: configs, tokenizer and weights, safetensors where there are any.

    Raises UsageError if there is no such repository and ResourceError if the hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        if constants.HF_HUB_OFFLINE:
            return Path(snapshot_download(repo, revision=revision, local_files_only=True))
        files = [f for f in HfApi().list_repo_files(repo, revision=revision) if "/" not in f]
        weights = [f for f in files if f.endswith(".safetensors")] or [f for f in files if f.startswith("pytorch_model")]
        wanted = [*SMALL, *weights]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except (LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code in (401, 404):
            at = f" at revision {revision!r}" if revision else ""
            raise UsageError(
                f"{repo!r} is neither a folder here nor a repository of {constants.ENDPOINT}{at} that you may read"
            ) from None
        raise ResourceError(
            f"{repo!r} is no folder here, and {constants.ENDPOINT} cannot be reached: {_first(error)}"
        ) from None
    except HFValidationError:
        raise UsageError(f"{repo!r} is neither a folder nor a hub id of the form org/name") from None


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
