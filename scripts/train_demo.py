"""Makes the demo model (models/demo), or measures it: python scripts/train_demo.py --help"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

GGUF = Path(__file__).resolve().parents[1] / "models" / "demo" / "sparrow-demo-f16.gguf"


def part(name: str) -> ModuleType:
    """demo.<name>, or one line that says what to install: PyTorch is no dependency of the server."""
    try:
        return importlib.import_module(f"demo.{name}")
    except ModuleNotFoundError as error:
        wanted = {"torch": "torch==2.13.0", "tokenizers": "tokenizers", "gguf": "gguf"}.get(error.name or "")
        if wanted is None:
            raise
        label = "PyTorch" if error.name == "torch" else error.name
        raise SystemExit(f"{label} is needed to train: .venv/bin/pip install {wanted}") from None


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=GGUF, help="the GGUF to write, or to measure")
    parser.add_argument("--scratch", type=Path, default=Path("demo-training"), help="folder for checkpoints")
    parser.add_argument("--stage", nargs="+", help="train these stages only (all of them, in order)")
    parser.add_argument("--start", type=Path, help="checkpoint to continue from")
    parser.add_argument("--steps", type=int, help="steps of each stage (the stage's own number)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="processes that train together, one thread each")
    parser.add_argument("--export", type=Path, metavar="CHECKPOINT", help="only write this checkpoint as --out")
    parser.add_argument(
        "--average",
        type=Path,
        nargs="+",
        metavar="CHECKPOINT",
        help="only write the mean of these, to --scratch and --out",
    )
    parser.add_argument("--measure", action="store_true", help="only print the accuracy of --out on held-out items")
    parser.add_argument("--official", action="store_true", help="measure at Qwen2.5's sampling instead of greedy")
    parser.add_argument("--quant", nargs="+", help="measure these quants (F16 Q8_0 Q4_0 IQ4_NL)")
    parser.add_argument("--row", nargs="+", help="measure these rows of the table")
    parser.add_argument("--share", type=float, default=1.0, help="share of the held-out items to ask")
    parser.add_argument("--show", type=int, default=0, help="failures to print per row")
    return parser


def measure(args: argparse.Namespace) -> None:
    if not args.out.is_file():
        raise SystemExit(f"There is no {args.out}: train first, or name a GGUF with --out")
    module = part("measure")
    module.measure(
        args.out,
        module.Options(
            quants=tuple(args.quant or module.QUANTS),
            rows=tuple(args.row or module.ROWS),
            sampling=module.OFFICIAL if args.official else module.GREEDY,
            share=args.share,
            n_threads=args.threads,
            show=args.show,
        ),
    )


def train(args: argparse.Namespace) -> Path:
    module = part("train")
    stages = tuple(args.stage or module.STAGES)
    if unknown := set(stages) - set(module.STAGES):
        raise SystemExit(f"No stage {', '.join(sorted(unknown))}: the stages are {', '.join(module.STAGES)}")
    if args.start is not None and not args.start.is_file():
        raise SystemExit(f"There is no checkpoint {args.start}")
    plan = module.Plan(stages, args.seed, args.threads, args.scratch, args.steps, args.start)
    checkpoint: Path = module.train(plan)
    return checkpoint


def main() -> int:
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")  # a host can advertise AMX and trap on it
    args = parser().parse_args()
    if args.measure:
        measure(args)
        return 0
    if args.average:
        checkpoint = args.scratch / "average.pt"
        part("export").average(args.average, checkpoint)
    else:
        checkpoint = args.export or train(args)
    part("export").write(checkpoint, args.out)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
