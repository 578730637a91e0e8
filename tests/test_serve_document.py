"""The OpenAPI document is true: requests made from it end as it says, right ones and wrong ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

schemathesis = pytest.importorskip("schemathesis")

import hypothesis
from schemathesis.checks import not_a_server_error
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

import serving

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    from stemma.tuning.predicting import task_of
    from test_serve_tasks import encoder, writer

    classify = encoder(task="classify", labels=["no", "yes"])
    models = {
        "tiny": serving.decoder(context=64),
        "bert": encoder(),
        "t5": writer(),
        "classify": (classify, task_of(classify)),
    }
    with serving.port(serving.server(models)) as address:
        yield address


def tried(url: str, examples: int) -> int:
    """Requests to every route, and how many there were."""
    schema, count = schemathesis.openapi.from_url(f"{url}/openapi.json"), 0
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (
            (GenerationMode.POSITIVE, GenerationMode.NEGATIVE) if operation.body else (GenerationMode.POSITIVE,)
        ):

            @hypothesis.settings(
                max_examples=examples, deadline=None, database=None, derandomize=True,
                suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
            )  # fmt: skip
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                nonlocal count
                count += 1
                body = case.body
                if isinstance(body, dict) and body and count % 2:
                    body["model"] = ("tiny", "bert", "t5", "classify")[count // 2 % 4]  # else few requests get far
                case.validate_response(case.call(timeout=60), checks=CHECKS)

            check()
    return count


def test_a_few_requests_of_every_route(url: str) -> None:
    assert tried(url, 3) > 60


@pytest.mark.slow
def test_many_requests_of_every_route(url: str) -> None:
    assert tried(url, 150) > 2000
