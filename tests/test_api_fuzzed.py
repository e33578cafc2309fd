"""schemathesis, from the server's own OpenAPI document: no 500, no answer that the document does not know.

Half of the requests are as the document wants them, half are wrong on purpose, and then refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, checks

from server.api.endpoints import ENDPOINTS
from server.api.openapi import Endpoint, document
from tests.server_process import ServerProcess

SCHEMA = schemathesis.openapi.from_dict(document(ENDPOINTS))
CONFORM = [
    checks.CHECKS.get_one(f"{what}_conformance")
    for what in ("status_code", "content_type", "response_schema", "response_headers")
]
REJECTED = checks.CHECKS.get_one("negative_data_rejection")
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
FEW = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A small context: what never ends of itself ends soon."""
    flags = ["--demo", "--ctx", "256", "--data-dir", str(tmp_path_factory.mktemp("data"))]
    with ServerProcess(flags) as server:
        yield server.url


def mended(body: Any) -> Any:
    """What no schema says is put right, so that more than one request in ten is answered; and a valid length of
    thousands is tried elsewhere: here it would only take time."""
    if not isinstance(body, dict):
        return body
    for name in LENGTHS:
        if isinstance(body.get(name), int):
            body[name] = min(body[name], 3)
    for message in body["messages"] if isinstance(body.get("messages"), list) else []:
        if isinstance(message, dict):
            message["content"] = message.get("content") or "Hi"
            if message.get("role") != "assistant":
                message.pop("tool_calls", None)
    if not body.get("tools") or isinstance(body.get("tool_choice"), dict):
        body.pop("tool_choice", None)
    return body


TRIED = [
    pytest.param(endpoint, mode, id=f"{name} {endpoint.method} {endpoint.path}")
    for endpoint in ENDPOINTS
    for name, mode in (("documented", GenerationMode.POSITIVE), ("wrong", GenerationMode.NEGATIVE))
    if mode is GenerationMode.POSITIVE or endpoint.body or endpoint.query
]


@pytest.mark.parametrize(("endpoint", "mode"), TRIED)
def test_no_answer_is_a_surprise(url: str, endpoint: Endpoint, mode: GenerationMode) -> None:
    operation = SCHEMA[endpoint.path.replace(":path}", "}")][endpoint.method]

    @FEW
    @given(case=operation.as_strategy(generation_mode=mode))
    def try_one(case: Any) -> None:
        case.body = mended(case.body)
        case.validate_response(case.call(base_url=url), checks=[checks.not_a_server_error, REJECTED, *CONFORM])

    try_one()
