"""What of a request is not honoured: said in the reply, or refused where the server is strict."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from server.errors import InvalidField

MAX_REPORTED = 20
"""Warnings of one request; a body of a megabyte can hold a hundred thousand unknown names."""


class Report:
    """What of a request is not honoured, by the names of its fields."""

    def __init__(self) -> None:
        self._why: dict[str, str] = {}

    @property
    def warnings(self) -> list[str]:
        """One line for each, for people."""
        return [f"{name}: {why}" for name, why in self._why.items()]

    @property
    def is_full(self) -> bool:
        """What else is not honoured is not reported."""
        return len(self._why) >= MAX_REPORTED

    def ignore(self, name: str, why: str) -> None:
        if not self.is_full:
            self._why[name[:80]] = why

    def settle(self, *, is_strict: bool) -> None:
        """Nothing more is ignored from here on. Raises InvalidField for the first, where the server is strict."""
        for name, why in self._why.items():
            if is_strict:
                raise InvalidField(name, f"{why} (Without --strict that would be a warning.)")

    def headers(self) -> dict[str, str]:
        """The names, as they can stand in a header: what no header can hold is written as in an address."""
        names = [quote(name, safe="[].")[:80] or '""' for name in self._why]
        return {"x-ignored-params": ", ".join(names)} if names else {}

    def json(self) -> dict[str, Any]:
        """What a reply says of it."""
        return {"warnings": self.warnings} if self._why else {}
