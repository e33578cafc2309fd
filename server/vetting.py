"""Whether a model file can be served: its header is read first, then it is tried out in another process, once.

That it passed is kept in the data folder, by what changes with the file: its size, its time, its first and last part.
A file that was fetched and compared with its known hash, or quantized here, has passed already.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path

from server import gguf_file
from server.engine.trial import try_out

FILE = "vetted.json"
N_BYTES = 1 << 20
"""Of the beginning and of the end, that are hashed: 2 ms."""
N_KEPT = 20


def vet(path: Path, folder: Path) -> None:
    """folder: the data folder. Raises ModelFileError, in one line."""
    gguf_file.read(path)
    if _passed(folder / FILE).get(str(path.resolve())) == _mark(path):
        return
    print(f"Trying {path.name} out in a process of its own, as it is new here … ", end="", flush=True)
    try_out(path)
    print("it is sound.", flush=True)
    vouch(path, folder)


def vouch(path: Path, folder: Path) -> None:
    """It passed. Where that can't be kept, it will be tried out again."""
    kept = folder / FILE
    temporary = kept.with_name(f"{kept.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        passed = {name: mark for name, mark in _passed(kept).items() if name != str(path.resolve())}
        passed[str(path.resolve())] = _mark(path)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(dict([*passed.items()][-N_KEPT:]), file, indent=1)
        temporary.replace(kept)


def _passed(kept: Path) -> dict[str, str]:
    try:
        found = json.loads(kept.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _mark(path: Path) -> str:
    """Of the file as it is, and of the llama.cpp that it passed with."""
    about, digest = path.stat(), hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        digest.update(file.read(N_BYTES))
        file.seek(max(0, about.st_size - N_BYTES))
        digest.update(file.read(N_BYTES))
    return f"{about.st_size} {about.st_mtime_ns} {digest.hexdigest()} {version('llama_cpp_python')}"
