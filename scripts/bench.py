"""How fast this machine is, how much of that the server passes on, and how other servers do beside it.

    python3 scripts/bench.py --standin           Qwen2.5-0.5B's exact shapes with random weights: needs no network
    python3 scripts/bench.py --model PATH.gguf   a file of yours
    … --llama-server PATH                        llama.cpp's server too, with the same file, threads and slots
    … --against URL                              any OpenAI-compatible server that runs already

A llama-server of the very same llama.cpp comes out of llama-cpp-python's source package: vendor/llama.cpp, cmake target
llama-server, with AMX off as in toolchain.py.

Every scenario is measured on each side in turns, never two together, and each time on a server that was just started;
on llama_decode alone too, where that makes sense. Printed are medians of --runs with the spread beside them, the limits
of this device, what was promised, and last one line of JSON: `… | tail -n 1 | python3 -m json.tool`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import bootstrap

if __name__ == "__main__":
    bootstrap.enter()

import bench_machine
import bench_options
import bench_plot
import bench_report
import bench_server
import bench_sides
import bench_targets
import console
import folder
import quantize
import standin
from bench_options import DEFAULT_QUANT
from bench_raw import Job
from bench_scenarios import SCENARIOS, Figures, Scenario, Sizes
from bench_sides import BOX, OURS, PEER, RAW, USUAL, Side
from tqdm import tqdm

from server import gguf_file
from server.engine import quantizer
from server.engine.loader import n_cores
from server.errors import UsageError

BUSY = 0.05  # share of all cores; above it somebody else computes here

Samples = dict[str, dict[str, list[float]]]


def main(argv: list[str], sizes: Sizes | None = None) -> int:
    """sizes: for tests, which have no minutes."""
    given = bench_options.parse(argv, (__doc__ or "").splitlines()[0])
    sizes = sizes or Sizes(n_tokens=given.n_tokens)
    bench_options.check_fits(given, sizes)
    running = [bench_sides.remote(url) for url in given.against]  # before a file is made, which takes minutes
    model = None if given.url else _prepare(given)
    bench = Bench(given, sizes, model, [*_started(given, model), *running])
    samples, busy = bench.measure()
    promises = bench.report(samples, busy)
    return int(given.check and not all(promise.is_kept for promise in promises))


@dataclass(frozen=True)
class Bench:
    """One call of the script. model: the file that all sides serve; None when only the running server knows it."""

    given: argparse.Namespace
    sizes: Sizes
    model: Path | None
    sides: list[Side]
    """This server first: it is what the others are compared with."""

    @property
    def scenarios(self) -> list[Scenario]:
        """Those that were asked for and that this server can be measured with, in the table's order."""
        wanted = self.given.scenario or SCENARIOS
        return [each for each in SCENARIOS.values() if each.name in wanted and each.can(self.sides[0])]

    @property
    def n_threads(self) -> int:
        return int(self.given.threads) or n_cores()

    def measure(self) -> tuple[Samples, list[float]]:
        """All figures, and how much of the CPU others took during each step (shares of all cores)."""
        samples: Samples = {side.name: defaultdict(list) for side in self.sides}
        busy: list[float] = []
        steps = [step for run in range(self.given.runs) for step in self._steps(run)]
        with tqdm(total=len(steps), desc="Measuring", unit="step", disable=None) as bar:
            _warn(bar, bench_machine.busy_share())
            for at, (name, scenario) in enumerate(steps, 1):
                _say(bar, f"{at} of {len(steps)}: {scenario.name}, {name}")
                others = bench_machine.Others()
                for key, value in self._figures(name, scenario, bar).items():
                    samples.setdefault(name, defaultdict(list))[key].append(value)
                if not any(side.name == name and side.server for side in self.sides):  # else it is no child of ours
                    busy.append(others.share() or 0.0)
                bar.update()
        return samples, busy

    def _steps(self, run: int) -> Iterator[tuple[str, Scenario]]:
        """Who goes first changes from run to run, so that nobody always has the cooler machine."""
        for scenario in self.scenarios:
            names = [side.name for side in self.sides if scenario.can(side)]
            if self.model is not None and scenario.n_rows:
                names.insert(1, RAW)
            yield from ((name, scenario) for name in (names if run % 2 == 0 else reversed(names)))

    def _figures(self, name: str, scenario: Scenario, bar: tqdm[None]) -> Figures:
        if name == RAW:
            return self._raw_figures(scenario)
        side = next(side for side in self.sides if side.name == name)
        try:
            return scenario.run(side, self.sizes)
        except UsageError as error:
            if name == OURS or side.can_restart:
                raise
            # A server that we know nothing of may not do all that is asked; the rest of its figures still counts.
            bar.write(f"{scenario.name} can't be measured there: {error.message}", file=sys.stderr)
            return {}

    def _raw_figures(self, scenario: Scenario) -> Figures:
        given, sizes = self.given, self.sizes
        n_rows = sizes.n_streams if scenario.n_rows > 1 else 1
        lengths = {"n_prompt": sizes.n_short, "n_long": sizes.n_long, "n_tokens": sizes.n_tokens, "n_rows": n_rows}
        path = str((self.model or Path()).resolve())
        return bench_sides.raw_figures(Job(path, given.ctx, given.slots, self.n_threads, **lengths))

    def report(self, samples: Samples, busy: list[float]) -> list[bench_report.Promise]:
        """Print everything; the promises are returned."""
        results, when = bench_report.spreads(samples), datetime.now(timezone.utc)
        promises = bench_targets.promises(results, as_served=bench_options.is_as_served(self.given))
        limits = bench_targets.limits(results, bench_machine.bandwidth(self.n_threads), self._n_weight_bytes())
        name = self.model.name if self.model else str(self.given.url)
        title, machine, run = f"{name}, {when:%Y-%m-%d}", bench_machine.describe(), self._run(busy)
        print(f"\n{title}", _in_words(machine, run), bench_report.table(samples), sep="\n", end="\n\n")
        print(bench_targets.show_limits(limits), *promises, sep="\n", end="\n\n")
        if self.given.plot:
            self.given.plot.write_text(bench_plot.svg(title, results), encoding="utf-8")
        report = {"model": name, "date": when.isoformat(timespec="seconds"), "machine": machine, "run": run}
        report |= {"results": bench_report.as_json(results), "limits": limits}
        report["promises"] = {promise.text: promise.is_kept for promise in promises}
        print(json.dumps(report, ensure_ascii=False))
        return promises

    def _run(self, busy: list[float]) -> dict[str, float]:
        """What a figure depends on besides the machine and the model."""
        lengths = {f"n_{name}": getattr(self.sizes, f"n_{name}") for name in ("short", "long", "history", "newcomer")}
        chosen = {name: getattr(self.given, name) for name in ("runs", "ctx", "slots")}
        others = {"others_busy": statistics.median(busy or [0.0]), "others_busy_most": max(busy, default=0.0)}
        return {**lengths, "n_tokens": self.sizes.n_tokens, **chosen, "n_threads": self.n_threads, **others}

    def _n_weight_bytes(self) -> int | None:
        """What one step reads: all but the embeddings, of which it takes a row, unless they are the output's too."""
        if self.model is None:
            return None
        file = gguf_file.read(self.model)
        embeddings = file.tensor(gguf_file.TOKEN_EMBD)
        unread = embeddings.n_bytes if embeddings and file.tensor(gguf_file.OUTPUT) else 0
        return sum(tensor.n_bytes for tensor in file.tensors) - unread


def _prepare(given: argparse.Namespace) -> Path:
    """The file to measure, made where it is missing or older than what it is made of. Raises ModelFileError."""
    source: Path = standin.DEFAULT_PATH if given.standin else given.model
    quant = given.quant or (DEFAULT_QUANT if given.standin else None)
    if given.standin and not source.exists():
        standin.main([])
    gguf_file.read(source)
    if quant is None:
        return source
    target = quantize.default_target(source, quantizer.file_type(quant))
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        with folder.alone(target.parent):
            quantize.quantize(source, target, quant, n_threads=given.threads)
    return target


def _started(given: argparse.Namespace, model: Path | None) -> Iterator[Side]:
    size = {"n_ctx": given.ctx, "n_slots": given.slots, "n_threads": given.threads or n_cores()}
    ours, theirs = given.box or (None, None)
    for file in given.box or ():
        gguf_file.read(file)
    if given.url:
        yield bench_sides.remote(given.url, OURS)
    else:
        files = {use: path for use, path in ((USUAL, model), (BOX, ours)) if path}
        programs = {use: bench_server.sparrow(path, **size) for use, path in files.items()}
        yield Side(OURS, programs, has_our_page=True)
    if given.llama_server:
        files = {use: path for use, path in ((USUAL, model), (BOX, theirs)) if path}
        programs = {use: bench_server.llama_server(given.llama_server, path, **size) for use, path in files.items()}
        yield Side(PEER, programs)


def _warn(bar: tqdm[None], busy: float | None) -> None:
    if busy is not None and busy > BUSY:
        bar.write(f"Others keep {busy:.0%} of this CPU busy: the figures will be worse than it can.", sys.stderr)


def _say(bar: tqdm[None], step: str) -> None:
    """Progress on stderr, beside the bar or as lines where stderr is no terminal."""
    if bar.disable:
        print(f"[{time.strftime('%H:%M:%S')}] {step}", file=sys.stderr, flush=True)
    bar.set_postfix_str(step)


def _in_words(machine: dict[str, str | int], run: dict[str, float]) -> str:
    lines = [
        "{cpu}, {n_cores} cores, {memory_mb:,} MB, {system}, llama-cpp-python {llama_cpp_python}".format(**machine),
        "CPU threads: {n_threads}; {slots} slots of {ctx:,} tokens; {runs} runs: median (least–greatest)".format(**run),
        "Others took {others_busy:.0%} of the CPU meanwhile, at most {others_busy_most:.0%} in one step".format(**run),
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    console.run(main)
