"""Stemma's own layout, for designs that no publisher's config.json can describe (GPT-3's alternating masks, your own
edits): the same files, with the whole design in config.json and our tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stemma import spec
from stemma.declare.family import Design
from stemma.errors import CheckpointError, UsageError, did_you_mean
from stemma.formats.names import Row

MODEL_TYPE = "stemma"


def read_config(config: Mapping[str, Any]) -> Design:
    """The design of a config.json in Stemma's own layout."""
    known = ("model_type", "design", "dtype", "family")
    if unknown := [name for name in config if name not in known]:
        hint = did_you_mean(unknown[0], known)
        raise CheckpointError(f"config.json: no key {unknown[0]!r} is known for model_type {MODEL_TYPE!r}{hint}")
    try:
        return spec.from_dict(Design, config["design"])
    except KeyError:
        raise CheckpointError("config.json has no 'design', which model_type 'stemma' needs") from None
    except UsageError as error:
        raise CheckpointError(f"config.json: design.{error}") from None


def write_config(design: Design, family: str | None) -> dict[str, Any]:
    """The config.json of any design."""
    return {"model_type": MODEL_TYPE, "family": family, "design": spec.to_dict(design)}


def rows(names: Mapping[str, Any]) -> list[Row]:
    """Every tensor under its own name."""
    return [Row(name, (name,)) for name in names]
