"""How fast this machine is, and how much of that the server passes on.

    python3 scripts/bench.py --standin           Qwen2.5-0.5B's exact shapes with random weights: needs no network
    python3 scripts/bench.py --model PATH.gguf   a file of yours

Each run starts the server and a process that only calls llama_decode on the same file, in turns and never together, and
measures both: the load, the first token of a short prompt, reading a long one, one stream, memory. Medians of --runs
with the spread beside them, what was promised, and last one line of JSON: `… | tail -n 1 | python3 -m json.tool`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from datetime import datetime, timezone
from pathlib import Path

import bootstrap

if __name__ == "__main__":
    bootstrap.enter()

import bench_client
import bench_machine
import bench_report
import bench_server
import console
import folder
import quantize
import standin
from bench_report import Promise
from tqdm import tqdm

from server import gguf_file
from server.engine import quantizer
from server.engine.loader import n_cores
from server.errors import UsageError
from server.settings import Settings

RAW, OURS = "llama_decode alone", "Sparrow over HTTP"
N_SHORT, N_LONG = 60, 512  # tokens of the two prompts
DEFAULT_QUANT = "IQ4_NL"
BUSY = 0.05  # share of all cores; above it somebody else computes here
LEAST_RATIO, MOST_MB = 0.90, 750.0

Figures = dict[str, float]


def main(argv: list[str]) -> int:
    given = _parse(argv)
    model = _prepare(given)
    busy = bench_machine.busy_share()
    if busy is not None and busy > BUSY:
        print(f"Others keep {busy:.0%} of this CPU busy: the figures will be worse than it can.", file=sys.stderr)
    samples = _measure(given, model)
    promises = _promises(samples, given)
    _print_report(given, model, busy, samples, promises)
    return int(given.check and not all(promise.is_kept for promise in promises))


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = console.Parser(prog="bench.py", description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    defaults = Settings()
    parser.add_argument(
        "--standin", action="store_true", help="measure a model of Qwen2.5-0.5B's shapes (writes 1.4 GB)"
    )
    parser.add_argument("--model", type=Path, metavar="PATH", help="measure this GGUF file")
    parser.add_argument("--quant", metavar="NAME", help=f"quantize it first (for --standin: {DEFAULT_QUANT})")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="runs to take the median of (default: 3)")
    parser.add_argument("--n-tokens", type=int, default=128, metavar="N", help="length of the answer (default: 128)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads; 0 takes the cores (default)")
    parser.add_argument(
        "--ctx", type=int, default=defaults.ctx, metavar="N", help="as for serve.py (default: %(default)s)"
    )
    parser.add_argument("--slots", type=int, default=defaults.slots, metavar="N", help="as for serve.py (default: 4)")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a promise is not kept")
    given = parser.parse_args(argv)
    if given.standin == (given.model is not None):
        raise UsageError("Give --standin, or --model PATH for a GGUF file of yours: one of the two.")
    if given.runs < 1 or given.n_tokens < 2 or given.threads < 0:
        raise UsageError("--runs takes 1 or more, --n-tokens 2 or more, --threads 0 or more.")
    needed = max(N_LONG, 2 * N_SHORT + given.n_tokens)
    if given.ctx <= needed:
        raise UsageError(f"--ctx {given.ctx}: the prompts and the answer need more than {needed} tokens.")
    return given


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


def _measure(given: argparse.Namespace, model: Path) -> bench_report.Samples:
    """Both sides, `runs` times. Who goes first changes from run to run, so that neither has the cooler machine."""
    samples: dict[str, dict[str, list[float]]] = {RAW: defaultdict(list), OURS: defaultdict(list)}
    n_prompt = float(N_SHORT)
    with tqdm(total=2 * given.runs, desc="Measuring", unit="start", disable=None) as bar:
        for run in range(given.runs):
            for side in (OURS, RAW) if run % 2 == 0 else (RAW, OURS):
                bar.set_postfix_str(f"run {run + 1}: {side}")
                figures = _server_figures(given, model) if side == OURS else _raw_figures(given, model, int(n_prompt))
                n_prompt = figures.get("n_prompt", n_prompt)
                for key, value in figures.items():
                    samples[side][key].append(value)
                bar.update()
    return samples


def _server_figures(given: argparse.Namespace, model: Path) -> Figures:
    """One start of the server. The first answer warms it up, and tells how many tokens the chat template adds."""
    flags = ["--model", str(model), "--ctx", str(given.ctx), "--slots", str(given.slots)]
    with bench_server.running([*flags, "--threads", str(given.threads)]) as server:
        warm = bench_client.chat(server.url, bench_client.unique_chat(20), min(8, given.n_tokens))
        n_template = warm.n_prompt - 20
        short = bench_client.chat(server.url, bench_client.unique_chat(max(1, N_SHORT - n_template)), given.n_tokens)
        long = bench_client.chat(server.url, bench_client.unique_chat(max(1, N_LONG - n_template)), 1)
        figures = {
            "n_prompt": float(short.n_prompt),
            "load_s": server.load_s,
            "first_token_ms": short.first_token_s * 1e3,
            "prompt_tok_s": (long.n_prompt - long.n_reused) / long.first_token_s,
            "decode_tok_s": short.tokens_per_s,
            "client_ms_per_token": short.client_s / short.n_tokens * 1e3,
        }
        time.sleep(0.5)
        memory = {"peak_mb": server.peak_bytes, "idle_mb": server.resident_bytes}
    return {**figures, **{key: n_bytes / 1e6 for key, n_bytes in memory.items() if n_bytes is not None}}


def _raw_figures(given: argparse.Namespace, model: Path, n_prompt: int) -> Figures:
    """One start of bench_raw.py, with the same prompt lengths, so that both answers begin at the same depth."""
    job = {"model": str(model.resolve()), "n_ctx": given.ctx, "n_slots": given.slots, "n_threads": given.threads}
    job |= {"n_prompt": n_prompt, "n_long": max(N_LONG, n_prompt), "n_tokens": given.n_tokens}
    command = [sys.executable, str(bench_server.ROOT / "scripts" / "bench_raw.py"), json.dumps(job)]
    # llama.cpp as it comes: with libgomp's own spinning, which server.engine shortens for ours.
    plain = {**os.environ, "GOMP_SPINCOUNT": "300000"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=bench_server.ROOT, env=plain)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise UsageError(f"llama.cpp can't compute {model}: {last or f'it ended with {done.returncode}'}")
    return dict(json.loads(done.stdout))


def _promises(samples: bench_report.Samples, given: argparse.Namespace) -> list[Promise]:
    """Only what is promised for what was measured: the memory for Qwen's shapes at the default flags."""
    results = bench_report.spreads(samples)
    share = bench_report.ratio(results, OURS, RAW, "decode_tok_s")
    assert share is not None
    promises = [Promise(f"one stream over HTTP is at least {LEAST_RATIO:.2f} × {RAW}", share, LEAST_RATIO, "least")]
    peak = results[OURS].get("peak_mb")
    is_default = (given.ctx, given.slots) == (Settings().ctx, Settings().slots)
    if peak and given.standin and is_default and given.quant in (None, DEFAULT_QUANT):
        promises.append(Promise(f"peak memory is below {MOST_MB:.0f} MB", peak.median, MOST_MB, "most"))
    return promises


def _print_report(
    given: argparse.Namespace, model: Path, busy: float | None, samples: bench_report.Samples, promises: list[Promise]
) -> None:
    machine, when, results = bench_machine.describe(), datetime.now(timezone.utc), bench_report.spreads(samples)
    run: dict[str, float | None] = {"n_short": int(results[OURS]["n_prompt"].median), "n_long": N_LONG}
    run |= {"n_tokens": given.n_tokens, "runs": given.runs, "ctx": given.ctx, "slots": given.slots}
    run |= {"n_threads": given.threads or n_cores(), "others_busy": busy}
    print(f"\n{model.name} ({folder.megabytes(model.stat().st_size)}), {when:%Y-%m-%d}")
    print("{cpu}, {n_cores} cores, {memory_mb:,} MB, {system}, llama-cpp-python {llama_cpp_python}".format(**machine))
    print(
        "{n_threads} threads, prompts of {n_short} and {n_long} tokens, answers of {n_tokens};".format(**run), end=" "
    )
    print("{runs} runs: median (least–greatest)\n".format(**run))
    print(bench_report.table(samples), end="\n\n")
    print(*promises, sep="\n", end="\n\n")
    report = {"model": model.name, "date": when.isoformat(timespec="seconds"), "machine": machine, "run": run}
    kept = {promise.text: promise.is_kept for promise in promises}
    print(json.dumps({**report, "results": bench_report.as_json(results), "promises": kept}, ensure_ascii=False))


if __name__ == "__main__":
    console.run(main)
