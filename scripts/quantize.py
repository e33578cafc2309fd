"""Make a small model of a large one: python3 scripts/quantize.py models/some-fp16.gguf --quant IQ4_NL"""

import re
import time
from dataclasses import dataclass
from pathlib import Path

import bootstrap

if __name__ == "__main__":
    bootstrap.enter()

import console
import folder
from folder import megabytes
from tqdm import tqdm

from server import gguf_file
from server.engine import quantizer
from server.errors import UsageError
from server.gguf_file import OUTPUT, TOKEN_EMBD, GGUFFile

UNQUANTIZED = {"F32", "F16", "BF16"}


@dataclass(frozen=True)
class Plan:
    """What a quantization will make, known before it starts. n_bytes: the result's size."""

    source: GGUFFile
    target: Path
    quant: str
    embedding: str | None
    drops_output: bool
    n_bytes: int
    fallbacks: dict[tuple[str, str], int]


def quantize(
    source: Path,
    target: Path,
    quant: str,
    *,
    token_embedding_type: str | None = None,
    n_threads: int = 0,
    max_buffer_bytes: int = 64 << 20,
) -> Path:
    """Write `target`, whole or not at all, and print what it took. The folder of `target` must be held.

    Raises UsageError when the source, the type or the disk does not allow it; `target` is then as it was.
    """
    began, partial = time.monotonic(), Path(f"{target}.partial")
    try:
        plan = make_plan(source, target, quant, token_embedding_type)
        print(f"Quantizing {source} to {plan.quant}", flush=True)
        peak = _write(plan, partial, n_threads, max_buffer_bytes)
        _check(partial, plan)
        folder.put_in_place(partial, target)
    except OSError as error:
        raise UsageError(f"{target} can't be written: {error.strerror}.") from None
    finally:
        partial.unlink(missing_ok=True)
    _summarize(plan, time.monotonic() - began, peak)
    return target


def make_plan(source: Path, target: Path, quant: str, token_embedding_type: str | None = None) -> Plan:
    """Ask llama.cpp for a dry run, on the header alone where the duplicate output.weight is to go."""
    quant = quantizer.file_type(quant)
    embedding = quantizer.embedding_type(token_embedding_type) if token_embedding_type else None
    file = gguf_file.read(source)
    _refuse(file, target, embedding)
    drops = gguf_file.has_duplicate_output(file)
    skeleton = Path(f"{target}.skeleton.partial")
    try:
        if drops:
            with skeleton.open("wb") as out:
                gguf_file.write_skeleton(file, OUTPUT, out)
        seen = skeleton if drops else source
        report = quantizer.run(quantizer.Job("dry run", seen, quant=quant, token_embedding_type=embedding))
    finally:
        skeleton.unlink(missing_ok=True)
    if report.needs_matrix:
        raise UsageError(
            f"--quant {quant} needs an importance matrix, which Sparrow has not: take Q2_K, IQ3_S or a larger one."
        )
    types = {name: text.upper() for name, text in report.types.items()}
    n_bytes = file.data_start + sum(
        _size(tensor, types[tensor.name]) for tensor in file.tensors if tensor.name in types
    )
    return Plan(file, target, quant, embedding or types.get(TOKEN_EMBD), drops, n_bytes, report.fallbacks)


def _refuse(file: GGUFFile, target: Path, embedding: str | None) -> None:
    """What llama.cpp would find out deep inside, or never."""
    if target.exists() and target.samefile(file.path):
        raise UsageError(f"{target} is the source itself: give another --output.")
    made = {tensor.type.name for tensor in file.tensors} - UNQUANTIZED
    if made:
        raise UsageError(f"{file.path} is quantized already ({', '.join(sorted(made))}): start from an F16 file.")
    table = file.tensor(TOKEN_EMBD)
    if table is None or "general.architecture" not in file.meta:
        raise UsageError(f"{file.path} holds no language model: {TOKEN_EMBD} is missing.")
    if embedding and table.shape[0] % _layout(embedding).n_block:
        columns, block = table.shape[0], _layout(embedding).n_block
        raise UsageError(
            f"--token-embedding-type {embedding}: rows of {columns} are no multiple of its {block}; try Q4_0."
        )


def _layout(name: str) -> gguf_file.TensorType:
    return gguf_file.TYPES[quantizer.EMBEDDING_TYPES[name]]


def _size(tensor: gguf_file.Tensor, name: str) -> int:
    """Bytes of this tensor as another type."""
    layout = next(layout for layout in gguf_file.TYPES.values() if layout.name == name)
    return tensor.n_elements // layout.n_block * layout.n_bytes


def _write(plan: Plan, partial: Path, n_threads: int, max_buffer_bytes: int) -> int:
    """Quantize into `partial`; returns the peak memory in bytes.

    A duplicate is made as small as can be and then left out, rather than first written out of the source: the source's
    copy would be the larger one by far. Its type no longer decides that of token_embd.weight, so that is given.
    """
    output = plan.source.tensor(OUTPUT) if plan.drops_output else None
    spare = "Q4_0" if output and output.shape[0] % _layout("Q4_0").n_block == 0 else "F16"
    extra = plan.n_bytes + _size(output, spare) if output else 0
    folder.need_room(partial.parent, plan.n_bytes + extra, "The quantized model")
    made = Path(f"{plan.target}.full.partial") if output else partial
    job = quantizer.Job(
        "quantize",
        plan.source.path,
        made,
        plan.quant,
        plan.embedding,
        spare if output else None,
        n_threads,
        max_buffer_bytes,
    )
    try:
        with tqdm(total=len(plan.source.tensors), unit="tensor", disable=None, leave=False) as bar:
            report = quantizer.run(job, lambda n, _total, name: bar.update(n - bar.n) or bar.set_postfix_str(name))
        if output:
            leave_out(gguf_file.read(made), OUTPUT, partial)
    finally:
        if output:
            made.unlink(missing_ok=True)
    return report.peak_bytes


def leave_out(file: GGUFFile, name: str, partial: Path) -> None:
    """Copy the file without one tensor. Raises UsageError when the disk is full."""
    try:
        with partial.open("wb") as out:
            gguf_file.write_without(file, name, out)
    except OSError as error:
        raise UsageError(f"{partial} can't be written: {error.strerror}.") from None


def _check(made: Path, plan: Plan) -> None:
    """Read back what was written: the header, every tensor's place, and each block of weights by llama.cpp."""
    n_tensors = len(plan.source.tensors) - plan.drops_output
    found = len(gguf_file.read(made).tensors)
    if found != n_tensors:
        raise UsageError(f"{made} has {found} tensors and should have {n_tensors}: the disk or the memory is faulty.")
    quantizer.run(quantizer.Job("verify", made))


def drop_duplicate(path: Path) -> bool:
    """Take output.weight out of a file in which it is token_embd.weight again. The folder must be held."""
    file = gguf_file.read(path)
    if not gguf_file.has_duplicate_output(file):
        return False
    partial = Path(f"{path}.partial")
    folder.need_room(path.parent, path.stat().st_size, "The copy without the duplicate")
    try:
        leave_out(file, OUTPUT, partial)
        quantizer.run(quantizer.Job("verify", partial))
        before, after = path.stat().st_size, partial.stat().st_size
        folder.put_in_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    print(f"Dropped {OUTPUT}, a copy of {TOKEN_EMBD}: {megabytes(before)} became {megabytes(after)}.", flush=True)
    return True


def _summarize(plan: Plan, seconds: float, peak: int) -> None:
    made = gguf_file.read(plan.target)
    size = megabytes(plan.target.stat().st_size)
    rate = f"{made.bits_per_weight:.2f} bits per weight"
    print(f"{plan.target}: {size}, {rate}, made in {seconds:.0f} s with {megabytes(peak)} of memory at most.")
    if plan.drops_output:
        print(f"Dropped {OUTPUT}: it was {TOKEN_EMBD} bit by bit.")
    if plan.fallbacks:
        ways = ", ".join(f"{n} from {wanted} to {taken}" for (wanted, taken), n in plan.fallbacks.items())
        total = sum(plan.fallbacks.values())
        print(f"{total} of {len(made.tensors)} tensors fell back, as their rows do not fit the type's blocks: {ways}.")


def default_target(source: Path, quant: str, token_embedding_type: str | None = None) -> Path:
    """Beside the source, under its name with the type in it."""
    stem = re.sub(r"[-_.](fp?16|bf16|fp?32)$", "", source.stem, flags=re.IGNORECASE)
    suffix = f"-embd-{token_embedding_type}" if token_embedding_type else ""
    return source.with_name(f"{stem}-{quant}{suffix}".lower() + ".gguf")


def _parser() -> console.Parser:
    parser = console.Parser(
        prog="quantize.py", description="Quantize an F16, BF16 or F32 GGUF with llama.cpp.", allow_abbrev=False
    )
    parser.add_argument("source", type=Path, help="the GGUF file to start from")
    parser.add_argument(
        "--quant", required=True, metavar="NAME", help="llama.cpp's name: " + ", ".join(sorted(quantizer.FILE_TYPES))
    )
    parser.add_argument("--token-embedding-type", metavar="T", help="another type for token_embd.weight, such as Q4_0")
    parser.add_argument("--output", type=Path, metavar="PATH", help="where to write (default: beside the source)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument(
        "--max-buffer", type=int, default=64, metavar="MiB", help="memory for rows in work (default: 64)"
    )
    return parser


def main(argv: list[str]) -> int:
    given = _parser().parse_args(argv)
    if given.threads < 0 or given.max_buffer < 1:
        raise UsageError("--threads and --max-buffer: give a whole number above 0.")
    quant = quantizer.file_type(given.quant)
    target = given.output or default_target(given.source, quant, given.token_embedding_type)
    gguf_file.read(given.source)
    with folder.alone(target.parent):
        quantize(
            given.source,
            target,
            quant,
            token_embedding_type=given.token_embedding_type,
            n_threads=given.threads,
            max_buffer_bytes=given.max_buffer << 20,
        )
    return 0


if __name__ == "__main__":
    console.run(main)
