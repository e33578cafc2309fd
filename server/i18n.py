"""The languages of the page: gettext catalogues, read as they are written, so that a new language is a new file.

English needs none: the texts in the templates are the message ids. `locale/zh.po` is named by what browsers ask for;
its "Language" header is what <html lang> says (zh-Hans lets the system choose simplified glyphs), its "X-Name" header
what its readers call it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LOCALE = Path(__file__).parent / "locale"
SOURCE = "en"

_QUOTED = re.compile(r'(?:(msgid|msgstr) )?(".*")')
_TAG = re.compile(r"^Language: *(\S+)$", re.MULTILINE)
_NAME = re.compile(r"^X-Name: *(.+)$", re.MULTILINE)
_RANGE = re.compile(r"\s*([A-Za-z]{1,8}|\*)(?:-[A-Za-z0-9-]+)?\s*(?:;\s*q\s*=\s*([0-9.]+)\s*)?")


@dataclass(frozen=True)
class Catalogue:
    """One language: its tag for <html lang>, message id -> text, and its name in itself."""

    tag: str
    texts: dict[str, str]
    name: str = "English"

    def gettext(self, message: str) -> str:
        return self.texts.get(message, message)

    def ngettext(self, singular: str, plural: str, n: int) -> str:
        """No text of the page counts anything yet; Jinja's extension asks for the function."""
        return self.gettext(singular if n == 1 else plural)


def read_po(path: Path) -> Catalogue:
    """A .po file of msgid, msgstr, continuation lines, comments. Raises ValueError with the line of anything else."""
    texts: dict[str, str] = {}
    parts: dict[str, str] = {}
    part = ""
    for number, line in enumerate([*path.read_text("utf-8").splitlines(), 'msgid ""'], 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _QUOTED.fullmatch(line.strip())
        if found is None:
            raise ValueError(f"{path}, line {number}: {line!r} is not understood (msgid, msgstr and comments are).")
        if found[1] == "msgid" and parts:
            texts[parts["msgid"]] = parts.get("msgstr", "")
            parts = {}
        part = found[1] or part
        parts[part] = parts.get(part, "") + json.loads(found[2])
    header = texts.pop("", "")
    tag, name = (found[1] if (found := line.search(header)) else path.stem for line in (_TAG, _NAME))
    return Catalogue(tag, {id: text for id, text in texts.items() if text}, name)


@cache
def load() -> dict[str, Catalogue]:
    """Language as browsers name it ("en", "zh") -> its catalogue."""
    return {SOURCE: Catalogue(SOURCE, {})} | {path.stem: read_po(path) for path in sorted(LOCALE.glob("*.po"))}


def names() -> list[tuple[str, str]]:
    """(language, its name in itself), for who chooses one."""
    return [(language, catalogue.name) for language, catalogue in load().items()]


def choose(accept_language: str, languages: Collection[str]) -> str:
    """The reader's first language among `languages` by an Accept-Language header; English when it names none."""
    best, best_weight = SOURCE, 0.0
    for entry in accept_language.split(","):
        found = _RANGE.fullmatch(entry)
        weight = _weight(found[2]) if found else 0.0
        if found and found[1].lower() in languages and weight > best_weight:
            best, best_weight = found[1].lower(), weight
    return best


def _weight(text: str | None) -> float:
    try:
        return 1.0 if text is None else float(text)
    except ValueError:
        return 0.0
