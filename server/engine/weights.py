"""A GGUF file becomes llama.cpp's model; what llama.cpp says meanwhile is kept, for the reason when it fails."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from pathlib import Path

import llama_cpp

from server.engine.table import forgetting
from server.errors import ModelFileError

_log_lines: list[str] = []
_WARNINGS = (3, 4)
"""GGML_LOG_LEVEL_WARN and _ERROR of ggml.h; the bindings' own logger has them one lower."""
_REASON = re.compile(r"error loading model\S*: *(.+)")


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_log(level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
    """llama.cpp's warnings and errors are kept, to say why a load failed; a person is not shown its chatter."""
    if level in _WARNINGS:
        _log_lines.append(text.decode("utf-8", "replace").strip())
        del _log_lines[:-50]


def last_error(default: str) -> str:
    """llama.cpp gives the reason first, and says last only that it failed."""
    reasons = [found[1] for line in _log_lines if (found := _REASON.search(line))]
    return next(iter([*reversed(reasons), *filter(None, reversed(_log_lines))]), default)


def identity(path: Path) -> tuple[int, int] | None:
    """What changes with a file's content; None: there is none."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns


def load(path: Path, on_progress: Callable[[float], bool], *, mapped: bool = False, vocab_only: bool = False) -> int:
    """llama.cpp's model. mapped: what it need not repack stays in the file. Raises ModelFileError, and what
    on_progress raises."""
    params = llama_cpp.llama_model_default_params()
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP if mapped else llama_cpp.LLAMA_LOAD_MODE_NONE
    params.n_gpu_layers = 0
    params.vocab_only = vocab_only
    raised: list[BaseException] = []
    told = forgetting(path, on_progress) if mapped else on_progress

    def progress(done: float, _user_data: object) -> bool:
        try:
            return told(done)
        except BaseException as error:  # Ctrl-C arrives here, and ctypes would only print it
            raised.append(error)
            return False

    params.progress_callback = llama_cpp.llama_progress_callback(progress)
    _log_lines.clear()
    llama_cpp.llama_log_set(_keep_log, ctypes.c_void_p(0))
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if raised:
        raise raised[0]
    if not model:
        raise ModelFileError(f"{path}: llama.cpp can't load it: {last_error('no reason given')}")
    return model  # type: ignore[no-any-return]
