"""GET /v1/models: the one model that is loaded."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.errors import NotFound
from server.state import AppState


async def models(request: Request[AppState]) -> Response:
    """GET /v1/models"""
    return JSONResponse({"object": "list", "data": [_entry(request)]})


async def model(request: Request[AppState]) -> Response:
    """GET /v1/models/{id}"""
    entry = _entry(request)
    if request.path_params["id"] != entry["id"]:
        raise NotFound(f"This model is not loaded; {entry['id']} is.", param="model")
    return JSONResponse(entry)


def _entry(request: Request[AppState]) -> dict[str, Any]:
    model = request.state["engine"].model
    return {
        "id": model.name,
        "object": "model",
        "created": request.state["started_at"],
        "owned_by": "sparrow",
        "context_length": model.n_ctx,
        "quant": model.quant,
    }
