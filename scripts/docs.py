"""Renew the README's table of flags from the code: python3 scripts/docs.py. A test fails when it is out of date."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path

import bootstrap

if __name__ == "__main__":
    bootstrap.enter()

from server.settings import Settings, flag_of, help_of

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- settings -->\n).*?(\n<!-- /settings -->)", re.DOTALL)


def settings_table() -> str:
    """Markdown: flag, default, help, a row each."""
    rows = [f"| `{flag_of(row)}` | {_default(row.default)} | {help_of(row)} |" for row in fields(Settings)]
    return "\n".join(["| flag | default | what it decides |", "|---|---|---|", *rows])


def _default(value: object) -> str:
    return "" if value is None or isinstance(value, bool) else f"`{value}`"


def renewed(text: str) -> str:
    """The README's text with a table of today."""
    return BLOCK.sub(lambda found: found[1] + settings_table() + found[2], text)


def main() -> int:
    README.write_text(renewed(README.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
