"""What many tests share: a random tiny model, the demo model, a running server."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.engine.engine import Engine
from server.engine.llama import Model
from server.engine.loader import open_engine
from server.settings import Settings
from tests.server_process import ServerProcess
from tests.tiny_model import write_tiny_model

DEMO = Path(__file__).parent.parent / "models" / "demo" / "sparrow-demo-f16.gguf"


def pytest_configure() -> None:
    """Who starts the tests in the background of a script has Ctrl-C ignored, by all programs that they start, too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The browser's tests come last: Playwright keeps an event loop running in this thread until the session ends."""
    items.sort(key=lambda item: "browser" in item.path.parts)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers: right shapes, no sense."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_model(tiny_path: Path) -> Iterator[Model]:
    model = Model(tiny_path)
    yield model
    model.close()


@pytest.fixture(scope="session")
def api_engine(tiny_path: Path) -> Engine:
    return open_engine(tiny_path, n_ctx=1024, n_slots=2, n_threads=1)


@pytest.fixture(scope="session")
def api(api_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The application on a random model, without a socket; one for the whole session."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"))
    with TestClient(create_app(settings, api_engine), base_url="http://127.0.0.1:8000") as client:
        yield client


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The real server with the demo model, through the real script; one for the whole session."""
    with ServerProcess(["--demo", "--data-dir", str(tmp_path_factory.mktemp("data"))]) as server:
        yield server
