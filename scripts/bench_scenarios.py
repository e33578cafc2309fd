"""The scenarios: what a person at a small machine meets, each measured on a server that has just been started."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import bench_busy
import bench_client
import bench_machine
import bench_page
from bench_client import Answer, Client, Messages, Stream
from bench_server import Server
from bench_sides import BOX, USUAL, Side

Figures = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """n_*: tokens, where nothing else is said. *_s: seconds."""

    n_tokens: int = 128
    """Of an answer whose speed counts."""
    n_short: int = 60
    n_long: int = 512
    n_history: int = 1250
    n_message: int = 16
    """What a person adds to that history: a sentence."""
    n_newcomer: int = 1200
    n_running: int = 700
    """Of the stream beside which the newcomer's prompt is read; what is too much of it is not waited for."""
    n_cancelled: int = 1500
    n_reading: int = 4000
    """Of prompts that are read while small requests come: one, where a slot holds so many tokens."""
    n_streams: int = 8
    """Streams, when several run together."""
    cancel_s: float = 0.5
    pause_s: float = 2.0
    """From the last key to Enter."""
    idle_s: float = 3.0
    """Before a restart: what a server keeps on disk, it writes when nobody waits."""
    kill_s: float = 3.0

    @property
    def n_most(self) -> int:
        """The longest conversation of all."""
        answers = max(2 * self.n_short + self.n_tokens, self.n_short + self.n_running)
        return max(answers, self.n_long, self.n_history + 4 * self.n_message, self.n_newcomer, self.n_cancelled) + 8


class Guest:
    """A client that has had a first answer: the server is warm, and what its chat template adds is known."""

    def __init__(self, server: Server, sizes: Sizes) -> None:
        self.server, self.sizes, self.client = server, sizes, server.client
        first = self.client.chat(bench_client.unique_chat(20), min(8, sizes.n_tokens))
        self._n_template = first.n_prompt - 20

    def prompt(self, n_tokens: int) -> Messages:
        """A new chat whose prompt has so many tokens, template and all."""
        return bench_client.unique_chat(max(1, n_tokens - self._n_template))

    def chat(self, messages: Messages, n_tokens: int) -> Answer:
        return self.client.chat(messages, n_tokens)


@dataclass(frozen=True, slots=True)
class Scenario:
    """measure: a fresh start of the side in a folder of its own -> figures. n_rows: of llama_decode alone, 0: none."""

    name: str
    about: str
    measure: Callable[[Side, Path, Sizes], Figures]
    can: Callable[[Side], bool] = lambda side: True
    n_rows: int = 0

    def run(self, side: Side, sizes: Sizes) -> Figures:
        with tempfile.TemporaryDirectory(prefix="sparrow-bench-", ignore_cleanup_errors=True) as folder:
            return self.measure(side, Path(folder), sizes)


def _as_guest(measure: Callable[[Guest], Figures], program: str = USUAL) -> Callable[[Side, Path, Sizes], Figures]:
    """Of the scenarios that need one start."""

    def started(side: Side, folder: Path, sizes: Sizes) -> Figures:
        with side.running(folder, program) as server:
            return measure(Guest(server, sizes))

    return started


def _one(guest: Guest) -> Figures:
    sizes, load_s = guest.sizes, guest.server.load_s
    guest.chat(guest.prompt(sizes.n_short), min(8, sizes.n_tokens))  # bench_raw does so too: first steps touch memory
    short = guest.chat(guest.prompt(sizes.n_short), sizes.n_tokens)
    long = guest.chat(guest.prompt(sizes.n_long), 4)  # random weights may say a token first that has no letter
    figures = {
        "n_prompt": float(short.n_prompt),
        "first_token_ms": short.first_token_s * 1e3,
        "prompt_tok_s": (long.n_prompt - long.n_reused) / long.first_token_s,
        "decode_tok_s": short.tokens_per_s,
        "client_ms_per_token": short.client_s / short.n_tokens * 1e3,
    }
    return figures if load_s is None else {**figures, "load_s": load_s}


def _out_of_the_box(guest: Guest) -> Figures:
    figures = _one(guest)
    return {f"box_{key}": figures[key] for key in ("decode_tok_s", "prompt_tok_s")}


def _together(guest: Guest) -> Figures:
    sizes = guest.sizes
    chats = [guest.prompt(sizes.n_short) for _ in range(sizes.n_streams)]
    answers = bench_client.together(guest.client, chats, sizes.n_tokens)
    times = [[sent + at for at in answer.times] for sent, answer in answers]
    wall_s = max(each[-1] for each in times) - min(sent for sent, _ in answers)
    figures = {"together_tok_s": sum(answer.n_tokens for _, answer in answers) / wall_s}
    first, last = max(each[0] for each in times), min(each[-1] for each in times)
    n_pieces = sum(first < at <= last for each in times for at in each)
    if n_pieces:  # streams so short that they did not meet have no common speed
        per_piece = sum(answer.n_tokens for _, answer in answers) / sum(map(len, times))
        figures["together_decode_tok_s"] = n_pieces * per_piece / (last - first)
    return figures


def _next_turn(client: Client, history: Messages, n_answer: int, n_message: int) -> Messages:
    """Have the history answered, and write the next message below the answer."""
    answer = client.chat(history, n_answer)
    message = {"role": "user", "content": bench_client.digits(n_message)}
    return [*history, {"role": "assistant", "content": answer.text}, message]


def _history(guest: Guest) -> Messages:
    """A conversation of n_history tokens, the last answer included, and a new message."""
    sizes = guest.sizes
    return _next_turn(guest.client, guest.prompt(sizes.n_history - sizes.n_message), sizes.n_message, sizes.n_message)


def _warm(guest: Guest) -> Figures:
    return {"warm_s": guest.chat(_history(guest), 2).first_token_s}


def _typing(guest: Guest) -> Figures:
    chat = _history(guest)
    began = time.monotonic()
    guest.client.prefill(chat)
    time.sleep(max(0.0, guest.sizes.pause_s - (time.monotonic() - began)))
    return {"typing_s": guest.chat(chat, 2).first_token_s}


def _newcomer(guest: Guest) -> Figures:
    sizes = guest.sizes
    alone_s = guest.chat(guest.prompt(sizes.n_newcomer), 2).first_token_s
    with Stream(guest.client, guest.prompt(sizes.n_short), sizes.n_running) as running:
        running.wait_for(16)
        sent = time.perf_counter()
        newcomer_s = guest.chat(guest.prompt(sizes.n_newcomer), 2).first_token_s
        times = running.times()
    figures = {"undisturbed_s": alone_s, "newcomer_s": newcomer_s, "newcomer_ratio": newcomer_s / alone_s}
    pairs = zip(times, times[1:], strict=False)
    gaps = sorted(then - now for now, then in pairs if then > sent and now < sent + newcomer_s)
    if gaps:  # else it had ended before
        spread = {"median": statistics.median(gaps), "p99": gaps[math.ceil(0.99 * len(gaps)) - 1], "largest": gaps[-1]}
        figures |= {f"gap_{name}_ms": seconds * 1e3 for name, seconds in spread.items()}
    return figures


def _busy(guest: Guest) -> Figures:
    sizes, n_most = guest.sizes, bench_busy.longest_prompt(guest.client)
    streams = [guest.prompt(sizes.n_short) for _ in range(sizes.n_streams)]
    reading = [guest.prompt(min(n_most, sizes.n_reading - at)) for at in range(0, sizes.n_reading, n_most)]
    return bench_busy.small_requests(guest.client, streams, sizes.n_running, reading)


def _cancel(guest: Guest) -> Figures:
    connection = guest.client.send(guest.prompt(guest.sizes.n_cancelled), 64)
    time.sleep(guest.sizes.cancel_s)
    connection.close()
    pid = guest.server.pid
    burnt = None if pid is None else bench_machine.until_quiet(pid, bench_client.TIMEOUT_S)
    return {} if burnt is None else {"cancel_cpu_s": burnt[0], "cancel_busy_s": burnt[1]}


def _memory(guest: Guest) -> Figures:
    """After the longest prompt and the most streams; a little later it is idle."""
    guest.chat(guest.prompt(guest.sizes.n_cancelled), 2)
    _together(guest)
    time.sleep(guest.sizes.pause_s)
    memory = {"peak_mb": guest.server.peak_bytes, "idle_mb": guest.server.resident_bytes}
    return {key: n_bytes / 1e6 for key, n_bytes in memory.items() if n_bytes is not None}


def _restart(side: Side, folder: Path, sizes: Sizes) -> Figures:
    """No warm-up after the restart: what a first request meets is what is measured."""
    with side.running(folder) as server:
        chat = _history(Guest(server, sizes))
        time.sleep(sizes.idle_s)
    with side.running(folder) as server:
        return {"restart_s": server.client.chat(chat, 2).first_token_s}


def _kill(side: Side, folder: Path, sizes: Sizes) -> Figures:
    return bench_page.kill_and_come_back(side, folder, sizes.kill_s)


SCENARIOS = {
    scenario.name: scenario
    for scenario in [
        Scenario("one", "one stream, a short prompt's first token, reading a long prompt", _as_guest(_one), n_rows=1),
        Scenario("together", "8 streams at once", _as_guest(_together), n_rows=8),
        Scenario("warm", "the next message of a long chat", _as_guest(_warm)),
        Scenario("typing", "the same, with its draft read during a pause in typing", _as_guest(_typing)),
        Scenario("newcomer", "a long prompt arrives beside a running stream", _as_guest(_newcomer)),
        Scenario(
            "busy",
            "/health and the page beside 8 streams and a prompt of 4,000 tokens; needs --slots 9 --ctx 4608",
            _as_guest(_busy),
            can=lambda side: side.has_our_page,
        ),
        Scenario("restart", "the next message after a restart", _restart, can=lambda side: side.can_restart),
        Scenario("cancel", "a client leaves inside a long prompt", _as_guest(_cancel)),
        Scenario("memory", "memory at peak and idle", _as_guest(_memory)),
        Scenario("kill", "kill -9 inside an answer of the page", _kill, can=lambda side: side.has_our_page),
        Scenario(
            "box", "each with its usual file", _as_guest(_out_of_the_box, BOX), can=lambda side: BOX in side.programs
        ),
    ]
}
