"""The templates with the reader's language in them. Everything that a person reads stands in templates/ or locale/."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from server import i18n

TEMPLATES = Path(__file__).parent.parent / "templates"
STATIC = Path(__file__).parent / "static"


@cache
def _catalogues() -> dict[str, i18n.Catalogue]:
    return i18n.load()


@cache
def _environments() -> dict[str, Environment]:
    return {language: environment(texts) for language, texts in _catalogues().items()}


def environment(texts: i18n.Catalogue) -> Environment:
    """The templates in one language."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(),  # by the file's name: all end in .html
        undefined=StrictUndefined,
        extensions=["jinja2.ext.i18n"],
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.globals.update(lang=texts.tag, static=static_url, version=version, languages=i18n.names())
    made.install_gettext_callables(  # type: ignore[attr-defined]
        texts.gettext, texts.ngettext, newstyle=True
    )
    return made


@cache
def version() -> str:
    """Of all files in static/ together: modules name each other without one, so they have to change together."""
    names = sorted(path for path in STATIC.iterdir() if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in names)).hexdigest()[:10]


def static_url(name: str) -> str:
    """The address of a file in static/ that changes with its content: browsers never run an old script."""
    assert (STATIC / name).is_file(), f"a template names {name}"
    return f"/static/{version()}/{name}"


def catalogue(accept_language: str) -> i18n.Catalogue:
    """The texts in the first language of the header that there is a catalogue for."""
    return _catalogues()[i18n.choose(accept_language, _catalogues())]


def render(template: str, accept_language: str, **context: object) -> str:
    """The page in the first language of the Accept-Language header that there is a catalogue for."""
    environments = _environments()
    language = i18n.choose(accept_language, environments)
    return environments[language].get_template(template).render(context)
