"""--idle-unload on the real server: the memory goes, everything else stays, and the next message brings it back."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from server.engine.engine import Engine
from server.engine.loader import open_engine
from server.engine.request import Handle
from server.engine.sampling import SamplingParams
from server.engine.sequence import Event, Finished
from server.errors import ModelAway, ModelFileError, ShuttingDown
from tests.event_source import Browser, EventSource
from tests.server_process import ROOT, ServerProcess

DEMO = ROOT / "models" / "demo" / "sparrow-demo-f16.gguf"
IDLE = "0.01"
"""Minutes: 0.6 s."""
LONG = "Repeat: " + "one two three four five six seven " * 4
FREED = re.compile(r"Nobody asked for 0\.6 s: .* \(([\d,]+) MB, now ([\d,]+) MB\)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("idle")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[ServerProcess]:
    model = shutil.copy(DEMO, folder / "model.gguf")
    with ServerProcess(["--model", str(model), "--data-dir", str(folder / "data"), "--idle-unload", IDLE]) as server:
        yield server


@pytest.fixture
def server(running: ServerProcess) -> ServerProcess:
    """Asleep, whatever the test before did."""
    fall_asleep(running)
    return running


def fall_asleep(server: ServerProcess) -> None:
    wait_for(lambda: server.json("/health")["status"] == "asleep")


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def say(browser: Browser, text: str, conversation: str | None = None) -> tuple[str, dict[str, Any]]:
    """In the page: the conversation, and how its answer ended."""
    begun = browser.ask(text, conversation)
    with EventSource(browser, begun["answer"]) as reader:
        reader.whole()
        return begun["conversation"]["id"], {**reader.end, "text": reader.text}


def complete(server: ServerProcess, text: str, **more: Any) -> Any:
    asked = {"messages": [{"role": "user", "content": text}], "max_tokens": 3, **more}
    return server.json("/v1/chat/completions", asked)


def n_loads(server: ServerProcess) -> float:
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as reply:
        found = re.search(r"^sparrow_model_loads_total (\S+)$", reply.read().decode(), re.MULTILINE)
    assert found
    return float(found[1])


def test_the_memory_is_free_and_the_page_is_there(server: ServerProcess) -> None:
    found = FREED.search(server.output)
    assert found
    before, after = (int(number.replace(",", "")) for number in found.groups())
    assert after < before - 40, "the demo's KV cache alone has 64 MB"
    browser = Browser(server.url)
    with browser.open("/") as page:
        assert "</html>" in page.read().decode()
    with browser.open("/conversations?q=nothing") as found_none:
        assert json.load(found_none)["conversations"] == []
    assert browser.post("/preferences", {"theme": "dark"})["theme"] == "dark"
    assert server.json("/v1/models")["data"] and server.json("/props") and len(server.json("/slots")) == 4
    assert server.json("/tokenize", {"content": "Hello!"})["tokens"]
    assert server.json("/health")["status"] == "asleep", "looking at the page wakes nobody"


def test_a_message_wakes_it_and_nothing_is_read_twice(server: ServerProcess) -> None:
    browser = Browser(server.url)
    conversation, _ = say(browser, "My name is Ana.")
    say(browser, LONG, conversation)
    fall_asleep(server)
    _, end = say(browser, "What is my name?", conversation)
    assert "Ana" in end["text"]
    assert end["stats"]["n_reused"] >= 64, "the conversation came back from its snapshot"


def test_those_who_come_together_wake_it_once(server: ServerProcess) -> None:
    before = n_loads(server)
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda n: complete(server, f"Hello {n}!"), range(8)))
    assert all(reply["choices"][0]["message"]["content"] for reply in replies)
    assert n_loads(server) == before + 1


def test_what_is_typed_wakes_it_early(server: ServerProcess) -> None:
    Browser(server.url).post("/drafts", {"text": "What is the capital of "})
    wait_for(lambda: server.json("/health")["status"] == "ok")


def test_a_model_file_that_is_gone_is_told_and_found_when_it_is_back(server: ServerProcess, folder: Path) -> None:
    model = folder / "model.gguf"
    model.rename(folder / "away.gguf")
    try:
        with pytest.raises(urllib.error.HTTPError) as refused:
            complete(server, "Hello!")
        with refused.value as reply:
            error = json.loads(reply.read())["error"]
        assert (refused.value.code, error["code"]) == (503, "model_unavailable")
        assert "model.gguf" in error["message"]
        _, end = say(Browser(server.url), "Hello!")
        assert end["status"] == "error" and end["error"]["code"] == "model_unavailable"
        assert server.json("/health")["status"] == "asleep"
    finally:
        (folder / "away.gguf").rename(model)
    assert complete(server, "Hello!")["usage"]["completion_tokens"] > 0


def test_it_ends_and_is_killed_asleep_and_while_it_falls_asleep(server: ServerProcess, folder: Path) -> None:
    browser = Browser(server.url)
    conversation, _ = say(browser, "My name is Zoë.")
    fall_asleep(server)
    assert server.stop() == 0
    server.start()
    say(browser, LONG, conversation)
    fall_asleep(server)
    server.kill()
    server.start()
    _, end = say(browser, "What is my name?", conversation)
    assert "Zoë" in end["text"] and end["stats"]["n_reused"] >= 64
    saved = set((folder / "data" / "kv").iterdir())
    say(browser, LONG, conversation)
    wait_for(lambda: set((folder / "data" / "kv").iterdir()) - saved)
    server.kill()
    server.start()
    assert "Zoë" in say(browser, "What is my name?", conversation)[1]["text"]


class SlowModel:
    """Takes the place of an engine's Model.reload: as slow as a test wants."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_end = threading.Event()
        self._reload = engine._model.reload
        monkeypatch.setattr(engine._model, "reload", self.reload)

    def reload(self, on_progress: Callable[[float], bool]) -> None:
        while not self.may_end.wait(0.01):
            if not on_progress(0.5):
                raise ModelFileError("broken off")
        self._reload(on_progress)


@pytest.fixture
def engine(tiny_path: Path) -> Iterator[Engine]:
    """Asleep."""
    made = open_engine(tiny_path, n_ctx=256, n_slots=1, n_threads=1, idle_s=0.05)
    made.start()
    wait_for(lambda: made.rest.state == "asleep")
    yield made
    made.close()


def ask(engine: Engine) -> tuple[Handle, list[Event]]:
    said: list[Event] = []
    return engine.submit(engine.vocab.tokenize("hello"), SamplingParams(max_tokens=3), said.append), said


def test_who_leaves_while_it_loads_is_let_go_and_the_others_are_answered(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SlowModel(engine, monkeypatch)
    (patient, heard), (hasty, gone) = ask(engine), ask(engine)
    wait_for(lambda: engine.rest.state == "waking")
    loading_s = patient.progress().loading_s
    assert loading_s is not None and loading_s > 0
    hasty.cancel()
    wait_for(lambda: gone)
    assert isinstance(gone[-1], Finished) and gone[-1].reason == "cancelled" and engine.rest.state == "waking"
    model.may_end.set()
    wait_for(lambda: heard and isinstance(heard[-1], Finished))
    assert isinstance(heard[-1], Finished) and heard[-1].reason == "length" and engine.rest.n_loads == 2


def test_the_end_does_not_wait_for_the_loading(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    SlowModel(engine, monkeypatch)
    _, heard = ask(engine)
    wait_for(lambda: engine.rest.state == "waking")
    engine.close()
    assert isinstance(heard[-1], Finished) and isinstance(heard[-1].error, ShuttingDown)


def test_a_mistake_while_it_loads_ends_the_request_and_not_the_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(engine._model, "reload", lambda _: 1 / 0)
        _, heard = ask(engine)
        wait_for(lambda: heard)
        assert isinstance(heard[-1], Finished) and isinstance(heard[-1].error, ModelAway)
    _, heard = ask(engine)
    wait_for(lambda: heard and isinstance(heard[-1], Finished))
    assert isinstance(heard[-1], Finished) and heard[-1].reason == "length"


def test_a_model_whose_file_has_changed_stays_in_memory(tiny_path: Path, tmp_path: Path) -> None:
    """Another file under the name would have other tokens."""
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_path.read_bytes())
    engine = open_engine(path, n_ctx=256, n_slots=1, n_threads=1, idle_s=0.05)
    path.touch()
    engine.start()
    try:
        wait_for(lambda: not engine.rest._after_s)
        assert engine.rest.state == "awake"
        _, heard = ask(engine)
        wait_for(lambda: heard and isinstance(heard[-1], Finished))
        assert isinstance(heard[-1], Finished) and heard[-1].reason == "length"
    finally:
        engine.close()
