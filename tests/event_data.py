"""The data of server-sent events."""

from __future__ import annotations

import json
from typing import Any


def chunks(text: str) -> list[Any]:
    """The data of each event, "[DONE]" as it is."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [entry if entry == "[DONE]" else json.loads(entry) for entry in data]
