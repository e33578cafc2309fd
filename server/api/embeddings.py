"""POST /v1/embeddings: the mean of the model's last states, as a vector of length 1.

A chat model was never trained for this: the vectors find texts that are nearly the same, and are much weaker than those
of a model made for searching.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.api.answering import Running, complete_or_gone, reply_headers
from server.api.parameters import CALLERS, MODEL, check_model
from server.api.prompts import PROMPTS, Prompts, token_ids
from server.api.report import Report
from server.api.table import Choice, Field, Number, Table
from server.body import read_json
from server.clients import client_of
from server.engine.sequence import Embedding, Finished, Usage
from server.errors import ContextOverflow, EngineFailed, QueueFull
from server.state import AppState

AT_ONCE = 4
"""Texts of one request that wait together: the others' turn comes in between."""

RETRY_S = 0.25
"""Seconds until a later text of an accepted request asks for its place again."""

_Running = Running[Embedding | Finished]
Vector = npt.NDArray[np.float32]

EMBEDDINGS = Table(
    (
        MODEL,
        Field("input", PROMPTS, "Give a text or tokens, or a list of up to 2,048 of them.", required=True),
        Field("encoding_format", Choice(("float", "base64")), "base64 holds 32-bit floats, lowest byte first."),
        Field("dimensions", Number(int, 1, 2**31 - 1), "Keep so many of the first numbers, as a unit vector again."),
        *CALLERS,
    )
)


@dataclass(frozen=True)
class EmbeddingRequest:
    inputs: Prompts
    as_base64: bool
    n_dimensions: int | None


def parse_embeddings(body: Mapping[str, Any], report: Report) -> EmbeddingRequest:
    given = EMBEDDINGS.read(body, "", report)
    return EmbeddingRequest(given["input"], given.get("encoding_format") == "base64", given.get("dimensions"))


async def embeddings(request: Request[AppState]) -> Response:
    """POST /v1/embeddings"""
    engine, report, body = request.state["engine"], Report(), await read_json(request)
    asked = parse_embeddings(body, report)
    check_model(body, engine.model.name, report)
    report.settle(is_strict=request.state["settings"].strict)
    tokens = await run_in_threadpool(lambda: [token_ids(engine.vocab, each, "input") for each in asked.inputs])
    embedder = _Embedder(request, tokens)
    first = embedder.submit(0)
    headers = reply_headers(request, first, report)
    if not await complete_or_gone(request, embedder.all(first)):
        return Response(status_code=499)
    data = [
        {"object": "embedding", "index": at, "embedding": _written(vector, asked)}
        for at, vector in enumerate(embedder.vectors)
    ]
    usage = {"prompt_tokens": embedder.n_tokens, "total_tokens": embedder.n_tokens}
    reply = {"object": "list", "model": engine.model.name, "data": data, "usage": usage, **report.json()}
    return JSONResponse(reply, headers=headers)


class _Embedder:
    """Has the texts of one request embedded, a few at a time."""

    def __init__(self, request: Request[AppState], tokens: list[list[int]]) -> None:
        self._engine, self._client = request.state["engine"], client_of(request)
        self._tokens = tokens
        self.vectors: list[Vector] = [np.empty(0, dtype=np.float32)] * len(tokens)
        self.n_tokens = 0

    def submit(self, at: int) -> _Running:
        """Raises what Engine.embed raises."""
        running = _Running(1)
        try:
            running.handles.append(self._engine.embed(self._tokens[at], running.sink(0), client=self._client))
        except ContextOverflow as error:
            error.param = "input" if len(self._tokens) == 1 else f"input[{at}]"
            raise
        return running

    async def _submit_soon(self, at: int) -> _Running:
        """The request is accepted: what finds the queue full waits here."""
        while True:
            try:
                return self.submit(at)
            except QueueFull:
                await asyncio.sleep(RETRY_S)

    async def all(self, first: _Running) -> None:
        """first: the first text's, which has been accepted. Raises the first error; then nothing goes on."""
        todo = iter(range(1, len(self._tokens)))

        async def work(running: _Running | None, at: int) -> None:
            while True:
                await self._one(running or await self._submit_soon(at), at)
                running, at = None, next(todo, -1)
                if at < 0:
                    return

        n_more = min(AT_ONCE, len(self._tokens)) - 1
        workers = [asyncio.create_task(work(first, 0))]
        workers += [asyncio.create_task(work(None, next(todo))) for _ in range(n_more)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()

    async def _one(self, running: _Running, at: int) -> None:
        usage: Usage | None = None
        try:
            async for batch in running.batches():
                for _, event in batch:
                    if isinstance(event, Embedding):
                        self.vectors[at] = event.vector
                    else:
                        usage = _usage_of(event)
        finally:
            running.cancel()
        if usage is None or not len(self.vectors[at]):  # the engine's limit of time ended it
            raise EngineFailed("The text could not be read in the time that a request may take: send a shorter one.")
        self.n_tokens += usage.n_prompt


def _usage_of(event: Finished) -> Usage:
    if event.error is not None:
        raise event.error
    return event.usage


def _written(vector: Vector, asked: EmbeddingRequest) -> str | list[float]:
    """Raises InvalidField."""
    if asked.n_dimensions is not None and asked.n_dimensions < len(vector):
        vector = vector[: asked.n_dimensions]
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    if asked.as_base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]
