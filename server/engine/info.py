"""What the engine serves. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelInfo:
    """What is being served. n_ctx: tokens that one conversation may hold."""

    name: str
    quant: str
    n_ctx: int
    is_demo: bool = False
