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

from server import gguf_copy, gguf_file
from server.engine import quantizer
from server.engine.table import ARCHITECTURES
from server.errors import UsageError
from server.gguf_file import OUTPUT, TOKEN_EMBD, GGUFFile, Tensor

UNQUANTIZED = {"F32", "F16", "BF16"}
TABLE = {"IQ4_NL": "Q8_0"}
"""For these, token_embd.weight is made the type given here, and the output layer that a tied model makes of it the same
type as all else: the server computes the best logits again from the table (server/engine/table.py)."""


@dataclass(frozen=True)
class Plan:
    """What a quantization will make, known before it starts. n_bytes: the result's size.

    has_duplicate: output.weight repeats token_embd.weight. is_apart: each gets its own type, see TABLE; otherwise a
    duplicate goes.
    """

    source: GGUFFile
    target: Path
    quant: str
    embedding: str | None
    has_duplicate: bool
    is_apart: bool
    n_bytes: int
    fallbacks: dict[tuple[str, str], int]

    @property
    def drops_output(self) -> bool:
        return self.has_duplicate and not self.is_apart

    @property
    def adds_output(self) -> bool:
        return self.is_apart and not self.has_duplicate


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
    """Ask llama.cpp for a dry run, on the header alone where the result has other tensors than the source."""
    quant = quantizer.file_type(quant)
    embedding = quantizer.embedding_type(token_embedding_type) if token_embedding_type else None
    file = gguf_file.read(source)
    _refuse(file, target, embedding)
    has_duplicate = gguf_copy.has_duplicate_output(file)
    is_apart = not embedding and _goes_apart(file, quant, has_duplicate)
    embedding = TABLE[quant] if is_apart else embedding
    change = gguf_copy.with_output if is_apart else gguf_copy.without_output
    tensors = change(file) if is_apart or has_duplicate else list(file.tensors)
    skeleton = Path(f"{target}.skeleton.partial")
    try:
        with skeleton.open("wb") as out:
            gguf_copy.write_skeleton(file, tensors, out)
        output_type = quant if is_apart else None
        report = quantizer.run(quantizer.Job("dry run", skeleton, Path(), quant, embedding, output_type))
    finally:
        skeleton.unlink(missing_ok=True)
    if report.needs_matrix:
        raise UsageError(
            f"--quant {quant} needs an importance matrix, which Sparrow has not: take Q2_K, IQ3_S or a larger one."
        )
    types = {name: text.upper() for name, text in report.types.items()}
    n_bytes = file.data_start + sum(_size(tensor, types[tensor.name]) for tensor in tensors if tensor.name in types)
    return Plan(
        file, target, quant, embedding or types.get(TOKEN_EMBD), has_duplicate, is_apart, n_bytes, report.fallbacks
    )


def _goes_apart(file: GGUFFile, quant: str, has_duplicate: bool) -> bool:
    table = file.tensor(TOKEN_EMBD)
    is_tied = has_duplicate or file.tensor(OUTPUT) is None
    is_known = quant in TABLE and file.meta["general.architecture"] in ARCHITECTURES
    return is_known and is_tied and table is not None and table.shape[0] % _layout(quant).n_block == 0


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

    A duplicate that goes is made as small as can be and then left out: a copy of the source without it would be far
    larger. Its type no longer decides that of token_embd.weight, so that is given.
    """
    added, made = Path(f"{plan.target}.source.partial"), Path(f"{plan.target}.full.partial")
    output_type = _spare_type(plan) if plan.drops_output else plan.quant if plan.is_apart else None
    folder.need_room(partial.parent, plan.n_bytes + _n_bytes_beside(plan), "The quantized model")
    job = quantizer.Job(
        "quantize",
        added if plan.adds_output else plan.source.path,
        made if plan.drops_output or plan.is_apart else partial,
        plan.quant,
        plan.embedding,
        output_type,
        plan.is_apart,
        n_threads,
        max_buffer_bytes,
    )
    try:
        if plan.adds_output:
            copy(plan.source, gguf_copy.with_output(plan.source), added)
        with tqdm(total=len(plan.source.tensors), unit="tensor", disable=None, leave=False) as bar:
            report = quantizer.run(job, lambda n, _total, name: bar.update(n - bar.n) or bar.set_postfix_str(name))
        added.unlink(missing_ok=True)
        if job.target == made:
            file = gguf_file.read(made)
            copy(file, gguf_copy.table_last(file.tensors) if plan.is_apart else gguf_copy.without_output(file), partial)
    finally:
        added.unlink(missing_ok=True)
        made.unlink(missing_ok=True)
    return report.peak_bytes


def _spare_type(plan: Plan) -> str:
    """The smallest that the duplicate can have."""
    output = plan.source.tensor(OUTPUT)
    return "Q4_0" if output and output.shape[0] % _layout("Q4_0").n_block == 0 else "F16"


def _n_bytes_beside(plan: Plan) -> int:
    """Of the files that are there for a while: the source with the duplicate it lacks, the result as it is made."""
    table, output = plan.source.tensor(TOKEN_EMBD), plan.source.tensor(OUTPUT)
    if plan.drops_output and output:
        return plan.n_bytes + _size(output, _spare_type(plan))
    if plan.adds_output and table:
        return max(plan.source.path.stat().st_size + table.n_bytes, plan.n_bytes)
    return plan.n_bytes if plan.is_apart else 0


def copy(file: GGUFFile, tensors: list[Tensor], partial: Path) -> None:
    """The file with these tensors. Raises UsageError when the disk is full."""
    try:
        with partial.open("wb") as out:
            gguf_copy.write(file, tensors, out)
    except OSError as error:
        raise UsageError(f"{partial} can't be written: {error.strerror}.") from None


def _check(made: Path, plan: Plan) -> None:
    """Read back what was written: the header, every tensor's place, and each block of weights by llama.cpp."""
    n_tensors = len(plan.source.tensors) - plan.drops_output + plan.adds_output
    found = len(gguf_file.read(made).tensors)
    if found != n_tensors:
        raise UsageError(f"{made} has {found} tensors and should have {n_tensors}: the disk or the memory is faulty.")
    quantizer.run(quantizer.Job("verify", made))


def drop_duplicate(path: Path) -> bool:
    """Take output.weight out of a file in which it is token_embd.weight again. The folder must be held."""
    file = gguf_file.read(path)
    if not gguf_copy.has_duplicate_output(file):
        return False
    partial = Path(f"{path}.partial")
    folder.need_room(path.parent, path.stat().st_size, "The copy without the duplicate")
    try:
        copy(file, gguf_copy.without_output(file), partial)
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
    if plan.is_apart:
        print(
            f"{OUTPUT} is {TOKEN_EMBD} once more, smaller: the server computes the best logits again from the latter."
        )
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
