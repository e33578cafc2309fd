"""What the documents say of the code is compared with the code."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from starlette.routing import Route

import docs
from server import api, metrics, pages
from server.settings import Settings, flag_of

ROOT = Path(__file__).parent.parent
READMES = ["README.md", "README.zh.md"]


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def test_the_table_of_flags_is_of_today() -> None:
    assert docs.BLOCK.search(text_of("README.md")), "the README has lost its markers"
    assert docs.renewed(text_of("README.md")) == text_of("README.md"), "run: python3 scripts/docs.py"


def test_the_chinese_readme_names_every_flag_and_default() -> None:
    text = text_of("README.zh.md")
    for row in fields(Settings):
        assert f"`{flag_of(row)}`" in text, flag_of(row)
        if not isinstance(row.default, (bool, type(None))):
            assert f"`{row.default}`" in text, f"the default of {flag_of(row)}"


def test_the_architecture_names_every_route() -> None:
    text = text_of("ARCHITECTURE.md")
    for route in [*api.routes, *metrics.routes, *pages.routes]:
        assert isinstance(route, Route)
        path = re.sub(r":\w+}", "}", route.path)
        for method in (route.methods or set()) - {"HEAD"}:
            assert f"`{method} {path}`" in text, f"{method} {path}"


@pytest.mark.parametrize(
    "name", [*READMES, "ARCHITECTURE.md", "CHANGELOG.md", "models/demo/README.md", "docs/operations.md"]
)
def test_files_that_documents_name_exist(name: str) -> None:
    """Links, and paths like scripts/serve.py."""
    text = text_of(name)
    named = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    named += re.findall(r"\b(?:scripts|server|tests|models|templates|docs)/[\w./-]*\w", text)
    for path in named:
        here, top = (ROOT / name).parent / path, ROOT / path
        assert here.exists() or top.exists() or path.endswith(".gguf"), f"{name} names {path}"


@pytest.mark.parametrize("name", READMES)
def test_the_two_commands_come_first(name: str) -> None:
    first_screen = "\n".join(text_of(name).splitlines()[:14])
    assert "python3 scripts/serve.py" in first_screen and "python3 scripts/test.py" in first_screen


def test_architecture_stays_on_two_screens() -> None:
    assert len(text_of("ARCHITECTURE.md").splitlines()) <= 145
