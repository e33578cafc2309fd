"""What is said while the model is loading, and that the app takes over, or the server ends, when it is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from server import serving
from server.app import create_app
from server.engine.engine import Engine
from server.engine.loader import open_engine
from server.errors import ModelFileError
from server.loading import Loading
from server.settings import Settings

HTML = {"Accept": "text/html", "Accept-Language": "en"}


class Model:
    """A model that is as far as a test lets it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done = 0.0
        self.may_end = threading.Event()

    def open(self, on_progress: Callable[[float], bool]) -> Engine:
        while not self.may_end.wait(0.01):
            if not on_progress(self.done):
                raise ModelFileError("broken off")
        return open_engine(self.path, n_ctx=256, n_slots=1, n_threads=1)


@pytest.fixture
def model(tiny_path: Path) -> Model:
    return Model(tiny_path)


@pytest.fixture
def loading(model: Model, tmp_path: Path) -> Loading:
    return Loading(model.open, partial(create_app, Settings(data_dir=tmp_path)), lambda: None)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_page_is_there_at_once_and_goes_on_when_the_model_is(model: Model, loading: Loading) -> None:
    with TestClient(loading) as client:
        model.done = 0.43
        wait_for(lambda: client.get("/health").json() == {"status": "loading", "progress": 0.43})
        assert client.get("/health").status_code == 503
        page = client.get("/c/any", headers=HTML)
        assert page.status_code == 503 and page.headers["retry-after"] == "1"
        assert "The model is loading" in page.text and 'value="0.43"' in page.text
        script = page.text.partition('src="')[2].partition('"')[0]
        assert "/health" in client.get(script).text
        model.may_end.set()
        wait_for(lambda: client.get("/health").status_code == 200)
        assert 'aria-label="Message"' in client.get("/", headers=HTML).text


def test_programs_are_told_to_come_back(loading: Loading) -> None:
    with TestClient(loading) as client:
        for reply in (
            client.post("/v1/chat/completions", json={}),
            client.post("/messages", json={}),
            client.get("/x"),
        ):
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
            assert reply.json()["error"]["code"] == "model_loading"


def test_the_end_does_not_wait_for_the_model(loading: Loading) -> None:
    began = time.monotonic()
    with TestClient(loading):
        pass
    assert loading.error is None and time.monotonic() - began < 5


def test_a_model_that_can_not_be_loaded_ends_the_server(loading: Loading, model: Model, tmp_path: Path) -> None:
    ended = threading.Event()
    loading.on_end = ended.set
    model.path = tmp_path / "none.gguf"
    model.may_end.set()
    with TestClient(loading):
        assert ended.wait(20)
    assert isinstance(loading.error, ModelFileError) and "none.gguf" in loading.error.message


def test_a_mistake_of_ours_while_loading_is_one_line_and_a_bad_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(*_: object, **__: object) -> Engine:
        raise TypeError("a mistake\nof ours")

    monkeypatch.setattr(serving, "open_engine", broken)
    settings = Settings(port=0, data_dir=tmp_path, browser=False)
    with serving.bind(settings) as bound:
        code = serving.serve(settings, bound, tmp_path / "any.gguf", is_demo=False)
    said = capsys.readouterr().err.splitlines()
    assert code == 1 and len(said) == 1
    assert "TypeError (a mistake of ours) in broken, " in said[0] and "test_loading.py:" in said[0]
