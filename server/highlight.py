"""The colours of code: Pygments' tokens as spans of a few classes, no inline style."""

from __future__ import annotations

from functools import cache, lru_cache
from html import escape
from itertools import groupby

from pygments.lexer import Lexer
from pygments.lexers import LEXERS, get_lexer_by_name
from pygments.token import Token, _TokenType

MAX_CODE = 6_000
"""Characters that are coloured, some 150 lines: Python's take 18 ms here, and five times that on a Pi."""

CLASSES = {
    Token.Keyword: "k",
    Token.Keyword.Type: "t",
    Token.Operator.Word: "k",
    Token.Literal.String: "s",
    Token.Literal.Number: "m",
    Token.Comment: "c",
    Token.Name.Function: "f",
    Token.Name.Class: "f",
    Token.Name.Decorator: "f",
    Token.Name.Builtin: "t",
    Token.Name.Tag: "t",
    Token.Name.Attribute: "a",
    Token.Generic.Inserted: "gi",
    Token.Generic.Deleted: "gd",
    Token.Generic.Heading: "k",
    Token.Generic.Subheading: "k",
}

# Pygments' own search for an unknown name looks through every installed package.
_KNOWN = {alias for _, _, aliases, _, _ in LEXERS.values() for alias in aliases}


@lru_cache(maxsize=64)  # code inside of a list is rendered again with each line below it
def highlight(code: str, language: str) -> str:
    """The code as HTML. A language that Pygments does not know has no colours, nor have blocks above MAX_CODE."""
    if language not in _KNOWN or len(code) > MAX_CODE:
        return escape(code, quote=False)
    tokens = groupby(_lexer(language).get_tokens(code), key=lambda token: _class(token[0]))
    return "".join(_span(name, "".join(value for _, value in group)) for name, group in tokens)


def _span(name: str, text: str) -> str:
    text = escape(text, quote=False)
    return f'<span class="{name}">{text}</span>' if name else text


@cache
def _lexer(language: str) -> Lexer:
    return get_lexer_by_name(language, stripnl=False, ensurenl=False)


@cache
def _class(kind: _TokenType) -> str:
    while kind is not None and kind not in CLASSES:
        kind = kind.parent
    return CLASSES.get(kind, "")
