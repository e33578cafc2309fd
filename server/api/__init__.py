"""The APIs for programs: OpenAI's /v1/*, llama-server's own routes, and the tiny /stream of older pages.

Here a response owns its answer: nobody can come back to it, so a client that goes away cancels it.
"""

from __future__ import annotations

from server.api.endpoints import ENDPOINTS
from server.api.errors import error_json
from server.api.openapi import routes_for

__all__ = ["error_json", "routes"]

routes = routes_for(ENDPOINTS)
