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
def _environments() -> dict[str, Environment]:
    return {language: environment(catalogue) for language, catalogue in i18n.load().items()}


def environment(catalogue: i18n.Catalogue) -> Environment:
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
    made.globals.update(lang=catalogue.tag, static=static_url)
    made.install_gettext_callables(  # type: ignore[attr-defined]
        catalogue.gettext, catalogue.ngettext, newstyle=True
    )
    return made


@cache
def static_url(name: str) -> str:
    """The address of a file in static/ that changes with its content: browsers never run an old script."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()
    return f"/static/{name}?v={digest[:10]}"


def render(template: str, accept_language: str, **context: object) -> str:
    """The page in the first language of the Accept-Language header that there is a catalogue for."""
    environments = _environments()
    language = i18n.choose(accept_language, environments)
    return environments[language].get_template(template).render(context)
