"""llama-server's own routes, in its forms: tools for them exist. Nothing here shows anybody's text."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.api.messages import MESSAGES, chat_messages
from server.api.parameters import MODEL
from server.api.prompts import TOKENS, token_ids
from server.api.report import Report
from server.api.table import Field, Flag, Table, Text
from server.api.tools import TOOLS, asked_in_chat, form_of
from server.body import read_json
from server.engine.engine import Engine
from server.engine.stats import SlotInfo
from server.state import AppState

TOKENIZE = Table(
    (
        MODEL,
        Field("content", Text(), "Give a text.", required=True),
        Field("parse_special", Flag(), "Read special tokens in the text as such; true unless given, as llama-server."),
        Field("with_pieces", Flag(), "Give the text of each token too, or its bytes where they are no whole text."),
        Field("add_special", Flag(), "Accepted; this model has no token that begins a text."),
    )
)
DETOKENIZE = Table((MODEL, Field("tokens", TOKENS, "Give token ids.", required=True)))
APPLY_TEMPLATE = Table(
    (
        MODEL,
        MESSAGES,
        TOOLS,
        Field("add_generation_prompt", Flag(), "End where the assistant begins to speak; true unless given."),
    )
)


async def tokenize(request: Request[AppState]) -> Response:
    """POST /tokenize"""
    given, headers = await _read(request, TOKENIZE)
    state = request.state
    reads = state["chat"].tokenize if given.get("parse_special", True) else state["engine"].vocab.tokenize
    tokens = await run_in_threadpool(reads, given["content"])
    if not given.get("with_pieces"):
        return JSONResponse({"tokens": tokens}, headers=headers)
    piece = state["engine"].vocab.piece

    def whole() -> Response:  # a second for the largest body: not on the event loop
        pieces = [{"id": token, "piece": _piece(piece(token))} for token in tokens]
        return JSONResponse({"tokens": pieces}, headers=headers)

    return await run_in_threadpool(whole)


def _piece(raw: bytes) -> str | list[int]:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


async def detokenize(request: Request[AppState]) -> Response:
    """POST /detokenize: special tokens have no text."""
    given, headers = await _read(request, DETOKENIZE)
    vocab = request.state["engine"].vocab

    def whole() -> Response:
        token_ids(vocab, given["tokens"], "tokens")
        text = b"".join(map(vocab.piece, given["tokens"])).decode("utf-8", "replace")
        return JSONResponse({"content": text}, headers=headers)

    return await run_in_threadpool(whole)


async def apply_template(request: Request[AppState]) -> Response:
    """POST /apply-template: the prompt of a chat, as text.

    Where a message holds a special token, U+FDD0 stands inside of it: /tokenize then reads it as the text that it is.
    """
    given, headers = await _read(request, APPLY_TEMPLATE)
    messages, opening = chat_messages(given["messages"]), given.get("add_generation_prompt", True)
    tools = form_of(asked_in_chat(given, Report()), Report()).tools
    prompt = await run_in_threadpool(request.state["chat"].render, messages, tools, opening=opening)
    return JSONResponse({"prompt": prompt}, headers=headers)


async def _read(request: Request[AppState], table: Table) -> tuple[dict[str, Any], dict[str, str]]:
    """The body's fields, and the headers of the reply."""
    report = Report()
    given = table.read(await read_json(request), "", report)
    report.settle(is_strict=request.state["settings"].strict)
    return given, report.headers()


async def props(request: Request[AppState]) -> Response:
    """GET /props: the model, and what a request that gives no parameters gets."""
    engine = request.state["engine"]
    generation = {"id": 0, "n_ctx": engine.model.n_ctx, "speculative": False, "is_processing": False}
    return JSONResponse(
        {
            "default_generation_settings": {**generation, "params": _defaults(engine)},
            "total_slots": len(engine.stats().slots),
            "model_alias": engine.model.name,
            "model_ftype": engine.model.quant,
            "modalities": {"vision": False, "audio": False},
            "chat_template": engine.chat_template or "",
            "build_info": "sparrow",
        }
    )


def _defaults(engine: Engine) -> dict[str, Any]:
    params = asdict(engine.sampling_defaults)
    told = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
    return {**{name: params[name] for name in told}, "n_predict": -1, "max_tokens": -1, "seed": -1, "stop": []}


async def slots(request: Request[AppState]) -> Response:
    """GET /slots: what each place for a conversation holds, in numbers."""
    stats = request.state["engine"].stats()
    return JSONResponse([_slot(slot, stats.n_ctx) for slot in stats.slots])


def _slot(slot: SlotInfo, n_ctx: int) -> dict[str, Any]:
    busy = slot.state == "busy"
    return {
        "id": slot.id,
        "n_ctx": n_ctx,
        "speculative": False,
        "is_processing": busy,
        "state": slot.state,
        "n_past": slot.n_tokens,
    }
