"""/v1/embeddings on the real engine with a random model."""

from __future__ import annotations

import base64
import itertools
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from server.engine.engine import Engine
from server.errors import QueueFull

TEXTS = ["one", "another", "a third", "a fourth", "a fifth", "a sixth"]


def post(api: TestClient, **fields: Any) -> Any:
    return api.post("/v1/embeddings", json=fields)


def vectors(api: TestClient, **fields: Any) -> Any:
    return np.array([entry["embedding"] for entry in post(api, **fields).json()["data"]])


def test_each_text_has_a_unit_vector_in_its_place(api: TestClient) -> None:
    reply = post(api, input=TEXTS).json()
    assert [entry["index"] for entry in reply["data"]] == list(range(6)) and reply["model"] == "tiny"
    assert reply["usage"] == {"prompt_tokens": len("".join(TEXTS)), "total_tokens": len("".join(TEXTS))}
    many = vectors(api, input=TEXTS)
    assert np.linalg.norm(many, axis=1) == pytest.approx(1, abs=1e-5)
    for text, vector in zip(TEXTS, many, strict=True):
        assert float(vectors(api, input=text)[0] @ vector) > 0.999
    assert len({tuple(vector.round(3)) for vector in many}) == 6


def test_a_text_that_takes_too_long_is_an_error_and_no_empty_vector(
    api: TestClient, api_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_engine, "_answer_s", 1e-6)
    reply = post(api, input="x" * 200)
    assert reply.status_code == 500 and "shorter" in reply.json()["error"]["message"]


def test_tokens_are_the_text_that_they_are(api: TestClient) -> None:
    tokens = api.post("/tokenize", json={"content": "one"}).json()["tokens"]
    assert float(vectors(api, input=tokens)[0] @ vectors(api, input=["one"])[0]) > 0.999
    assert vectors(api, input=[tokens, "one"]).shape[0] == 2


def test_base64_holds_the_same_numbers(api: TestClient) -> None:
    (entry,) = post(api, input="one", encoding_format="base64").json()["data"]
    raw = np.frombuffer(base64.b64decode(entry["embedding"]), dtype="<f4")
    assert raw == pytest.approx(vectors(api, input="one")[0], abs=1e-3)


def test_fewer_dimensions_are_the_first_ones_as_a_unit_vector(api: TestClient) -> None:
    whole, short = vectors(api, input="one")[0], vectors(api, input="one", dimensions=8)[0]
    assert short == pytest.approx(whole[:8] / np.linalg.norm(whole[:8]), abs=1e-3)
    assert vectors(api, input="one", dimensions=10**6)[0].shape == whole.shape


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [99999]}, "input"),
        ({"input": "x" * 1100}, "input"),
        ({"input": ["a", "x" * 1100]}, "input[1]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
    ],
)
def test_a_bad_field_is_a_400_that_names_it(api: TestClient, fields: dict[str, Any], param: str) -> None:
    reply = post(api, **fields)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


def test_an_unknown_field_is_reported(api: TestClient) -> None:
    reply = post(api, input="a", dimension=3)
    assert (
        reply.headers["x-ignored-params"] == "dimension" and "did you mean dimensions?" in reply.json()["warnings"][0]
    )
    assert reply.headers["x-queue-position"] == "0"


def test_a_full_queue_refuses_the_first_text_and_holds_up_the_others(
    api: TestClient, api_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, count = api_engine.embed, itertools.count(1)
    monkeypatch.setattr("server.api.embeddings.RETRY_S", 0.001)

    def now_and_then_full(*args: Any, **more: Any) -> Any:
        if next(count) % 3 == 0:
            raise QueueFull(32, 1)
        return embed(*args, **more)

    monkeypatch.setattr(api_engine, "embed", now_and_then_full)
    assert len(post(api, input=TEXTS).json()["data"]) == 6
    while next(count) % 3 != 2:
        pass
    reply = post(api, input=TEXTS)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
