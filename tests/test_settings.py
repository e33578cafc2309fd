"""The settings table: flags, variables, defaults, and one clear line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.errors import UsageError
from server.settings import Settings, load


def test_defaults() -> None:
    settings = load([], {})
    assert settings == Settings()
    assert (settings.host, settings.port, settings.ctx, settings.slots) == ("127.0.0.1", 8000, 4096, 4)
    assert (settings.quant, settings.demo, settings.browser) == (None, False, True)


def test_a_flag_wins_over_a_variable_and_that_over_the_default() -> None:
    environ = {"SPARROW_PORT": "9000", "SPARROW_SLOTS": "2", "SPARROW_BROWSER": "0", "SPARROW_DEMO": "yes"}
    settings = load(["--port", "9001", "--data-dir", "/x"], environ)
    assert (settings.port, settings.slots, settings.data_dir) == (9001, 2, Path("/x"))
    assert (settings.browser, settings.demo) == (False, True)
    assert load(["--no-browser"], {}).browser is False


def test_an_empty_variable_is_none_at_all() -> None:
    assert load([], {"SPARROW_PORT": ""}).port == 8000


@pytest.mark.parametrize(
    ("argv", "environ", "said"),
    [
        (["--port", "x"], {}, "--port: 'x' is no whole number"),
        (["--port", "70000"], {}, "--port: 70000 is no port"),
        (["--slots", "0"], {}, "--slots: 0 is too small; the least is 1"),
        ([], {"SPARROW_CTX": "many"}, "SPARROW_CTX: 'many' is no whole number"),
        ([], {"SPARROW_DEMO": "maybe"}, "SPARROW_DEMO='maybe': give 1 or 0"),
        (["--prot", "1"], {}, "unrecognized arguments: --prot 1"),
        (["--por", "1"], {}, "unrecognized arguments: --por 1"),
        (["--port"], {}, "argument --port: expected one argument"),
        (["--demo", "--model", "a.gguf"], {}, "exclude each other"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(argv: list[str], environ: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(argv, environ)
    assert said in caught.value.message and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000/"),
        ("0.0.0.0", "http://127.0.0.1:8000/"),
        ("::1", "http://[::1]:8000/"),
        ("::", "http://[::1]:8000/"),
        ("pi.local", "http://pi.local:8000/"),
    ],
)
def test_the_url_is_one_that_a_browser_opens(host: str, url: str) -> None:
    assert Settings(host=host).url == url
