"""The benchmark's command line."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import console
from bench_scenarios import SCENARIOS, Sizes

from server.errors import UsageError
from server.settings import Settings

DEFAULT_QUANT = "IQ4_NL"
N_CTX, N_SLOTS = 2048, 8
"""Together the memory of the server's own defaults; eight streams need eight slots."""


def parse(argv: list[str], about: str) -> argparse.Namespace:
    """Raises UsageError for everything that can be seen to be wrong before a server is started."""
    parser = console.Parser(prog="bench.py", description=about, allow_abbrev=False)
    _add_sides(parser.add_argument_group("what is measured"))
    _add_numbers(parser.add_argument_group("how"))
    given = parser.parse_args(argv)
    if [given.standin, given.model is not None, given.url is not None].count(True) != 1:
        raise UsageError(
            "Give --standin, --model PATH for a GGUF file of yours, or --url URL for a server that runs: one of them."
        )
    _check(given)
    return given


def _add_sides(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--standin", action="store_true", help="a model of Qwen2.5-0.5B's shapes (writes 1.4 GB)")
    group.add_argument("--model", type=Path, metavar="PATH", help="this GGUF file")
    group.add_argument("--quant", metavar="NAME", help=f"quantize it first (for --standin: {DEFAULT_QUANT})")
    group.add_argument("--url", metavar="URL", help="a Sparrow that runs already, instead of starting one")
    group.add_argument("--llama-server", type=Path, metavar="PATH", help="start this llama-server in turns with ours")
    group.add_argument(
        "--against", action="append", default=[], metavar="URL", help="a server that runs already; may be repeated"
    )
    group.add_argument(
        "--box", nargs=2, type=Path, metavar=("OURS", "THEIRS"), help="also: each with the file that is usual for it"
    )
    names = ", ".join(f"{scenario.name} ({scenario.about})" for scenario in SCENARIOS.values())
    group.add_argument("--scenario", nargs="+", metavar="NAME", help=f"only some of them: {names}")


def _add_numbers(group: argparse._ArgumentGroup) -> None:
    numbers = {
        "runs": (3, "runs to take the median of"),
        "n-tokens": (Sizes().n_tokens, "length of the answers whose speed counts"),
        "threads": (0, "CPU threads of every side; 0 takes the cores"),
        "ctx": (N_CTX, "tokens of a slot, on every side"),
        "slots": (N_SLOTS, "slots, on every side"),
    }
    for name, (default, about) in numbers.items():
        group.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{about} (default: {default})")
    group.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the table as bars")
    group.add_argument("--check", action="store_true", help="exit with 1 when a promise is not kept")


def _check(given: argparse.Namespace) -> None:
    if given.runs < 1 or given.n_tokens < 2 or given.threads < 0 or given.slots < 1:
        raise UsageError("--runs and --slots take 1 or more, --n-tokens 2 or more, --threads 0 or more.")
    unknown = [name for name in given.scenario or () if name not in SCENARIOS]
    if unknown:
        raise UsageError(f"--scenario {unknown[0]}: there is none of that name; give some of {', '.join(SCENARIOS)}.")
    if given.url and (given.quant or given.llama_server):
        raise UsageError("--url measures what that server serves: leave --quant and --llama-server out.")
    if given.box and not given.llama_server:
        raise UsageError(
            "--box compares with a llama-server that is started with a file of its own: --llama-server PATH."
        )
    if "box" in (given.scenario or ()) and not given.box:
        raise UsageError("--scenario box needs two files: --box OURS THEIRS.")
    if given.llama_server and not os.access(given.llama_server, os.X_OK):
        raise UsageError(f"--llama-server {given.llama_server}: there is no program that can be started.")
    if given.plot and given.plot.suffix.lower() != ".svg":
        raise UsageError(f"--plot {given.plot}: the chart is an SVG; give a name that ends in .svg.")
    if given.plot and not given.plot.parent.is_dir():
        raise UsageError(f"--plot {given.plot}: there is no folder {given.plot.parent}.")


def is_as_served(given: argparse.Namespace) -> bool:
    """What is measured is Qwen's shapes in the quant and with the memory that serve.py takes when nothing is chosen."""
    usual = Settings()
    has_usual_memory = given.ctx * given.slots == usual.ctx * usual.slots
    return bool(given.standin and has_usual_memory and (given.quant or DEFAULT_QUANT).upper() == DEFAULT_QUANT)


def check_fits(given: argparse.Namespace, sizes: Sizes) -> None:
    """Raises UsageError when the scenarios' conversations are longer than a slot."""
    if not given.url and given.ctx <= sizes.n_most:
        raise UsageError(
            f"--ctx {given.ctx}: the conversations that are measured need more than {sizes.n_most} tokens."
        )
