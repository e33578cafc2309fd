"""llama.cpp's quantizer, in a process of its own: Ctrl-C works at once, and an abort() in there is an error here.

Beside llama.py the only file that imports llama_cpp. The child is this module run with a job as JSON on its command
line; it answers with one JSON object a line.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import llama_cpp

from server.errors import UsageError
from server.gguf_file import REPEATS, TYPES

ROOT = Path(__file__).resolve().parent.parent.parent

_REFUSED = {"GUESSED", "NVFP4"}
"""File types that have a number but that llama_model_quantize does not make."""
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "FP16": "F16", "FP32": "F32"}
FILE_TYPES: dict[str, int] = {
    name: getattr(llama_cpp, constant)
    for constant in dir(llama_cpp)
    if (name := re.sub("^LLAMA_FTYPE_(MOSTLY_|ALL_)?", "", constant)) != constant and name not in _REFUSED
}
"""Everything that llama.cpp can make, by its usual name."""
_NO_EMBEDDING = re.compile(r"I\d+|F64|Q8_1|Q8_K|NVFP4|IQ1_.*|IQ2_X+S")
EMBEDDING_TYPES = {kind.name: number for number, kind in TYPES.items() if not _NO_EMBEDDING.fullmatch(kind.name)}
"""What token_embd.weight can be made; the types left out need an importance matrix or are none for weights."""
_KEEP = llama_cpp.GGML_TYPE_COUNT
"""llama.cpp's own choice, in the fields that name a tensor type."""


def file_type(name: str) -> str:
    """The usual name for what a person typed, in any case. Raises UsageError with the names that there are."""
    usual = _ALIASES.get(name.upper(), name.upper())
    if usual not in FILE_TYPES:
        raise UsageError(f"--quant {name}: llama.cpp has no such type; it has {', '.join(sorted(FILE_TYPES))}.")
    return usual


def embedding_type(name: str) -> str:
    """As file_type, for --token-embedding-type."""
    usual = {"FP16": "F16", "FP32": "F32"}.get(name.upper(), name.upper())
    if usual not in EMBEDDING_TYPES:
        raise UsageError(f"--token-embedding-type {name}: no such type; there are {', '.join(EMBEDDING_TYPES)}.")
    return usual


@dataclass(frozen=True, slots=True)
class Job:
    """One call of llama.cpp. n_threads 0: all cores.

    verify: load `source` and check every weight.
    """

    action: Literal["quantize", "dry run", "verify"]
    source: Path
    target: Path = Path()
    quant: str = "F16"
    token_embedding_type: str | None = None
    output_type: str | None = None
    repeats: bool = False
    """Note in the file that its output.weight is made of token_embd.weight."""
    n_threads: int = 0
    max_buffer_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Report:
    """What a job showed. types: each tensor's type afterwards (dry run only); fallbacks: (wanted, taken) -> tensors."""

    types: dict[str, str]
    fallbacks: dict[tuple[str, str], int]
    needs_matrix: bool
    peak_bytes: int


OnTensor = Callable[[int, int, str], object]
"""Called with the tensor's number from 1, how many there are, and its name."""


def run(job: Job, on_tensor: OnTensor = lambda *_: None) -> Report:
    """Do the job in a child process. Raises UsageError with llama.cpp's reason when it fails or dies."""
    command = [sys.executable, "-m", __name__, json.dumps(asdict(job), default=os.path.abspath)]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environment
        ) as child:
            try:
                lines = _listen(child, on_tensor)
            except BaseException:
                child.kill()
                raise
        if child.returncode == 0:
            return _report(lines)
        errors.seek(0)
        raise UsageError(_why(job, child.returncode, lines, errors.read().decode("utf-8", "replace")))


def _listen(child: subprocess.Popen[str], on_tensor: OnTensor) -> list[str]:
    """Pass the child's progress on; return what llama.cpp said, line by line."""
    assert child.stdout
    said = ""
    for line in child.stdout:
        said += json.loads(line)
        found = re.match(r"\[ *(\d+)/ *(\d+)\] +(\S+)", said.rpartition("\n")[2])
        if found:
            on_tensor(int(found[1]), int(found[2]), found[3])
    return said.splitlines()


def _report(lines: list[str]) -> Report:
    text = "\n".join(lines)
    types = dict(re.findall(r"^\[ *\d+/ *\d+\] +(\S+) .*?, type = +(\S+),", text, re.MULTILINE))
    types |= dict(re.findall(r"^\[ *\d+/ *\d+\] +(\S+) .* MiB \((\S+)\)", text, re.MULTILINE))
    fallbacks = Counter(re.findall(r"required for type +(\S+)\).*?-> falling back to +(\S+)", text))
    peak = re.search(r"^peak (\d+)", text, re.MULTILINE)
    return Report(types, dict(fallbacks), "will require an imatrix" in text, int(peak[1]) if peak else 0)


_TELLING = re.compile(
    r"(?:failed to quantize|error loading model\S*): *(.*)|(GGML_ASSERT\(.*)|(terminate called.*|what\(\):.*)"
)


def _why(job: Job, code: int, lines: list[str], errors: str) -> str:
    """One line: the reason that llama.cpp gives for its failure or its death."""
    said = [line for line in [*lines, *errors.splitlines()] if line.strip()]
    telling = [next(filter(None, found.groups())) for found in map(_TELLING.search, said) if found]
    reason = (telling or said or ["it said nothing"])[-1].strip()
    if code > 0 and job.action == "quantize" and shutil.disk_usage(job.target.parent).free < job.max_buffer_bytes:
        reason = f"the disk is full, {job.target.parent} has no room left"
    how = f"llama.cpp died of {signal.Signals(-code).name}" if code < 0 else "llama.cpp refuses it"
    return f"{job.source}: {how}: {reason}"


def _say(_level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
    """Each piece of llama.cpp's log becomes a line of JSON; when the parent has gone, so do we."""
    try:
        print(json.dumps(text.decode("utf-8", "replace")), flush=True)
    except BrokenPipeError:
        os._exit(1)


_SAY = llama_cpp.llama_log_callback(_say)


def _params(job: Job) -> Any:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[job.quant]
    params.nthread = job.n_threads
    params.max_buf_size = job.max_buffer_bytes
    params.dry_run = job.action == "dry run"
    params.token_embedding_type = EMBEDDING_TYPES.get(job.token_embedding_type or "", _KEEP)
    params.output_tensor_type = EMBEDDING_TYPES.get(job.output_type or "", _KEEP)
    if job.repeats:
        params.kv_overrides = (llama_cpp.llama_model_kv_override * 2)()  # the second one is the end
        params.kv_overrides[0].tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_BOOL
        params.kv_overrides[0].key = REPEATS.encode()
        params.kv_overrides[0].value.val_bool = True
    return params


def _quantize(job: Job) -> int:
    params = _params(job)
    return int(llama_cpp.llama_model_quantize(os.fsencode(job.source), os.fsencode(job.target), ctypes.byref(params)))


def _verify(job: Job) -> int:
    """Load it as a server would, with every block of weights checked for numbers that are none."""
    params = llama_cpp.llama_model_default_params()
    params.check_tensors = True
    params.use_extra_bufts = False
    model = llama_cpp.llama_model_load_from_file(os.fsencode(job.source), params)
    if not model:
        return 1
    llama_cpp.llama_model_free(model)
    return 0


def main(text: str) -> int:
    """The child: one job."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler would wait until llama.cpp returns
    given = json.loads(text)
    job = Job(**{**given, "source": Path(given["source"]), "target": Path(given["target"])})
    llama_cpp.llama_log_set(_SAY, ctypes.c_void_p(0))
    failed = _verify(job) if job.action == "verify" else _quantize(job)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps(f"\npeak {peak}\n"), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
