"""Fields of a request's JSON, checked. Everything wrong is an InvalidField that names the field and what it takes."""

from __future__ import annotations

import json
import re
from typing import Any

from server.errors import InvalidField, InvalidRequest

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(raw: bytes | bytearray, what: str) -> Any:
    """The value that `what`, "The body", holds; every text and name in it can be stored, shown and tokenized.

    Raises InvalidRequest.
    """
    try:
        text = raw.decode("utf-8-sig")  # json.loads(raw) would take halves of characters, and UTF-16
        value = json.loads(text)
        return _mended(value) if _ESCAPED_SURROGATE.search(text) else value
    except UnicodeDecodeError as error:
        why = f"it is no UTF-8 text (byte {error.start}); write it in UTF-8."
    except json.JSONDecodeError as error:
        why = str(error)
    except ValueError:
        why = "a number in it has too many digits."
    except RecursionError:
        why = "its lists and objects are nested too deeply."
    raise InvalidRequest(f"{what} is not valid JSON: {why}")


def _mended(value: Any) -> Any:
    """JSON can write half a character, "\\ud800", which is no text anywhere else."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_mended(entry) for entry in value]
    if isinstance(value, dict):
        return {storable(name): _mended(entry) for name, entry in value.items()}
    return value


def number(given: Any, field: str, kind: type[int] | type[float]) -> float | int:
    """JSON knows one kind of number; Python's reads NaN, Infinity and numbers of any size too."""
    wanted = "whole number" if kind is int else "number"
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise InvalidField(field, f"give a {wanted}.")
    if not abs(given) < 1e30 or (kind is int and given != int(given)):
        raise InvalidField(field, f"{str(given)[:20]} is no {wanted} that can be used.")
    return kind(given)


def flag(given: Any, field: str) -> bool:
    if not isinstance(given, bool):
        raise InvalidField(field, "give true or false.")
    return given


def text(given: Any, field: str, n_most: int) -> str:
    """A text that can be stored, its ends trimmed."""
    if not isinstance(given, str):
        raise InvalidField(field, "give a text.")
    if len(given) > n_most:
        raise InvalidField(field, f"{len(given):,} characters are too many; at most {n_most:,} can be kept.")
    return clean(given)


def clean(given: str) -> str:
    """What somebody typed, its ends trimmed. NUL ends a text for some programs."""
    return storable(given.strip().replace("\0", ""))


def storable(given: str) -> str:
    """A lone surrogate is no text: neither SQLite nor the tokenizer takes it."""
    return _SURROGATE.sub("?", given)
