"""The benchmark's client, and the servers that it is pointed at, those that can't be measured too."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import bench
import bench_client
import bench_sides
import pytest
from bench_client import Answer, Client, Stream
from bench_scenarios import Sizes

from server.errors import UsageError


def frames(*contents: str, usage: bool = True) -> list[bytes]:
    """An answer as OpenAI's API streams it."""
    made = [{"choices": [{"delta": {"content": content}}]} for content in contents]
    tail: list[dict[str, Any]] = (
        [{"choices": [], "usage": {"prompt_tokens": 60, "completion_tokens": 4}}] if usage else []
    )
    return [b"data: " + json.dumps(frame).encode() + b"\n\n" for frame in [*made, *tail]] + [b"data: [DONE]\n\n"]


@contextmanager
def answering(
    status: int, body: list[bytes], *, draft_status: int | None = None
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server on loopback that gives every POST this reply and lists one model; (its URL, the requests it got).

    draft_status: for a request with max_tokens 0, instead of status.
    """
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(draft_status if draft_status and not requests[-1]["max_tokens"] else status)
            self.end_headers()
            for part in body:
                self.wfile.write(part)
                time.sleep(0.02)

        def do_GET(self) -> None:
            self.send_response(200 if status == 200 else 404)
            self.end_headers()
            self.wfile.write(b'{"data": [{"id": "qwen"}]}')

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()


class TestClient:
    def test_only_text_counts_as_the_first_token(self) -> None:
        with answering(200, [b": ping\n\n", *frames("", "a", "", "b", "c", "d")]) as (url, requests):
            answer = Client(url).chat(bench_client.unique_chat(5), 4)
        assert (answer.n_prompt, answer.n_tokens, answer.n_reused, len(answer.times)) == (60, 4, 0, 4)
        assert answer.first_token_s >= 0.04, "the ping and the empty delta came 0.02 s apart"
        assert answer.times == sorted(answer.times)
        assert requests[0]["max_tokens"] == 4 and requests[0]["ignore_eos"] is True

    def test_the_speed_is_that_between_the_first_token_and_the_last(self) -> None:
        answer = Answer([2.0, 2.5, 4.0], n_prompt=60, n_tokens=5, n_reused=0, client_s=0.0)
        assert answer.tokens_per_s == 4 / 2.0

    def test_no_two_prompts_begin_alike(self) -> None:
        first, second = (bench_client.unique_chat(30)[0]["content"] for _ in range(2))
        assert re.fullmatch(r"\d{30}", first) and first != second

    @pytest.mark.parametrize(
        "status, body, message",
        [
            (400, [b'{"error": {"message": "ignore_eos: unknown."}}'], "answered 400: ignore_eos: unknown."),
            (502, [b"Bad Gateway"], "answered 502: Bad Gateway"),
            (200, [b'data: {"error": {"message": "no memory"}}\n\n'], "broke an answer off: no memory"),
            (200, frames("a", "b", usage=False), "streams no text, or no usage"),
            (200, [], "streams no text, or no usage"),
        ],
    )
    def test_what_can_not_be_measured_is_said(self, status: int, body: list[bytes], message: str) -> None:
        with answering(status, body) as (url, _), pytest.raises(UsageError, match=re.escape(message)):
            Client(url).chat(bench_client.unique_chat(5), 4)

    def test_nobody_there(self) -> None:
        with pytest.raises(UsageError, match="stopped answering: .*refused"):
            Client("http://127.0.0.1:9").chat(bench_client.unique_chat(5), 4)
        assert not bench_client.is_healthy("http://127.0.0.1:9")

    def test_an_answer_in_one_piece_has_no_speed(self) -> None:
        with answering(200, frames("abcd")) as (url, _):
            answer = Client(url).chat(bench_client.unique_chat(5), 4)
        with pytest.raises(UsageError, match="4 tokens came in one piece"):
            _ = answer.tokens_per_s

    def test_a_stream_can_be_left_and_what_came_is_known(self) -> None:
        with answering(200, frames(*"abcdefghij" * 20)) as (url, _):
            with Stream(Client(url), bench_client.unique_chat(5), 200) as stream:
                stream.wait_for(3)
                began = time.perf_counter()
            assert time.perf_counter() - began < 1.0
        times = stream.times()
        assert 3 <= len(times) < 200 and all(stream.sent < at < time.perf_counter() for at in times)

    def test_several_streams_run_together(self) -> None:
        with answering(200, frames(*"abcd")) as (url, requests):
            began = time.perf_counter()
            answers = bench_client.together(Client(url), [bench_client.unique_chat(5)] * 4, 4)
            assert [answer.text for _, answer in answers] == ["abcd"] * 4
        assert time.perf_counter() - began < 4 * 6 * 0.02 and len(requests) == 4

    def test_a_draft_is_sent_with_no_answer_to_come(self) -> None:
        with answering(200, [b"{}"]) as (url, requests):
            Client(url, "qwen").prefill(bench_client.unique_chat(5))
        assert requests[0]["max_tokens"] == 0 and "stream" not in requests[0] and requests[0]["model"] == "qwen"

    def test_a_server_that_reads_no_drafts_is_quoted(self) -> None:
        with answering(400, [b'{"error": {"message": "max_tokens: 1 or more."}}']) as (url, _):
            with pytest.raises(UsageError, match=r"answered 400 to max_tokens 0: max_tokens: 1 or more\."):
                Client(url).prefill(bench_client.unique_chat(5))


class TestRemote:
    def test_what_one_server_can_not_do_costs_its_other_figures_nothing(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        flags = ["--runs", "1", "--scenario", "warm", "typing"]
        sizes = Sizes(n_history=40, n_message=5, pause_s=0.0)
        with (
            answering(200, frames(*"abcd")) as (ours, _),
            answering(200, frames(*"abcd"), draft_status=400) as (url, _),
        ):
            assert bench.main(["--url", ours, "--against", url, *flags], sizes) == 0
        out, progress = capsys.readouterr()
        assert "typing can't be measured there: " + url + " answered 400 to max_tokens 0" in progress
        figures = json.loads(out.splitlines()[-1])["results"]
        assert set(figures[bench_sides.OURS]) == {"warm_s", "typing_s"} and set(figures[url[7:]]) == {"warm_s"}

    def test_a_server_is_known_by_its_address_and_its_model_by_the_name_that_it_lists(self) -> None:
        with answering(200, frames("a", "b")) as (url, requests):
            side = bench_sides.remote(f"{url}/v1/")
        assert side.name == url.removeprefix("http://") and not side.can_restart
        assert side.server is not None and side.server.client == Client(url, "qwen")
        assert requests[0]["model"] == "qwen"

    @pytest.mark.parametrize(
        "url", ["localhost:8080", "https://127.0.0.1:1", "http://", "http://127.0.0.1:port", "ftp://x"]
    )
    def test_what_is_no_address(self, url: str) -> None:
        with pytest.raises(UsageError, match="is no address of a server: give one like http://127.0.0.1:8080"):
            bench_sides.remote(url)

    def test_one_that_is_down(self) -> None:
        with pytest.raises(
            UsageError, match="http://127.0.0.1:9: nobody answers there .*refused.*: start that server first"
        ):
            bench_sides.remote("http://127.0.0.1:9")

    def test_one_that_speaks_no_http(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:

            def greet() -> None:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"220 mail.example ready\r\n")

            thread = threading.Thread(target=greet)
            thread.start()
            with pytest.raises(UsageError, match="what answers there speaks no HTTP"):
                bench_sides.remote(f"http://127.0.0.1:{listening.getsockname()[1]}")
            thread.join()

    @pytest.mark.parametrize(
        "status, body, message",
        [
            (404, [b"<h1>Not\nFound</h1>"], "answered 404: <h1>Not Found</h1>"),
            (500, [b'{"error": {"message": "no memory"}}'], "answered 500: no memory"),
            (500, [], "answered 500: without a word"),
            (200, [b"hello"], "streams no text, or no usage at the end"),
        ],
    )
    def test_one_that_answers_no_chat(self, status: int, body: list[bytes], message: str) -> None:
        with answering(status, body) as (url, _), pytest.raises(UsageError) as caught:
            bench_sides.remote(url)
        assert caught.value.message.startswith(url) and message in caught.value.message
        assert "\n" not in caught.value.message
