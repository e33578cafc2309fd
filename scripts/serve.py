"""Serve the chat page and the API: python3 scripts/serve.py [--demo]. The first start sets everything up."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import bootstrap

sys.path.insert(1, str(bootstrap.ROOT))

import console

from server.settings import Settings, load

if __name__ == "__main__":
    console.refuse_mistakes(load)  # now, not after minutes of setting up
    bootstrap.enter()

import apart
import folder
import manifest
import quantize
from folder import megabytes

from server import gguf_file, logs, serving, vetting
from server.engine import quantizer
from server.errors import UsageError

DEMO = manifest.MODELS / "demo" / "sparrow-demo-f16.gguf"
QUANT, DEMO_QUANT, OFFICIAL_QUANT = "IQ4_NL", "Q8_0", "Q4_0"
"""What is served when --quant is not given: by default, with --demo, with --prequantized."""
KEEP_FP16_BYTES = 4 * 10**9
"""The fp16 file, good for other quants only, stays if this much is free beside it. A small SD card has better uses."""
OTHER_WAYS = (
    "Other ways: --demo serves a tiny model without any network; --endpoint URL (or HF_ENDPOINT) asks another hub; "
    "--model PATH serves a GGUF file that you have, from a USB stick for example."
)


def choose(settings: Settings) -> Path:
    """The file to serve, made or fetched first where it is not there. Raises UsageError when there is no way to it."""
    models = settings.models_dir or manifest.MODELS
    if settings.model:
        vetting.vet(settings.model, settings.data_dir)
        return settings.model
    if settings.demo:
        return _demo(models, quantizer.file_type(settings.quant or DEMO_QUANT), settings.threads)
    if settings.prequantized:
        return _official(settings, models, settings.quant or OFFICIAL_QUANT)
    return _quantized(settings, models, quantizer.file_type(settings.quant or QUANT))


def _demo(models: Path, quant: str, n_threads: int) -> Path:
    target = quantize.default_target(models / DEMO.name, quant)
    with folder.alone(models):
        if not target.exists() or (DEMO.exists() and target.stat().st_mtime < DEMO.stat().st_mtime):
            quantize.quantize(DEMO, target, quant, n_threads=n_threads)
    return target


def _official(settings: Settings, models: Path, quant: str) -> Path:
    target = models / manifest.official(quant).name
    if target.exists():
        vetting.vet(target, settings.data_dir)
    else:
        _fetch(settings, models, "--quant", quant, "--drop-duplicate")
        gguf_file.read(target)
        vetting.vouch(target, settings.data_dir)
    return target


def _quantized(settings: Settings, models: Path, quant: str) -> Path:
    source = models / manifest.official("fp16").name
    target = quantize.default_target(source, quant)
    if target.exists():
        vetting.vet(target, settings.data_dir)
        return target
    fetched = not source.exists()
    if fetched:
        _fetch(settings, models)
    with folder.alone(models):
        if not target.exists():
            quantize.quantize(source, target, quant, n_threads=settings.threads)
    if fetched:
        vetting.vouch(target, settings.data_dir)
    else:  # what is odd in a source is odd in what is made of it
        vetting.vet(target, settings.data_dir)
    if fetched and source.exists():  # another start may have been here
        _keep_or_delete(source)
    return target


def _fetch(settings: Settings, models: Path, *flags: str) -> None:
    """In a process of its own: importing the hub's library would cost every start half a second and 30 MB."""
    command = [sys.executable, str(bootstrap.ROOT / "scripts" / "fetch.py"), "--dir", str(models), *flags]
    process = subprocess.Popen([*command, *(["--endpoint", settings.endpoint] if settings.endpoint else [])])
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # it has heard the same Ctrl-C
        raise
    if code != 0:
        raise UsageError(OTHER_WAYS)


def _keep_or_delete(source: Path) -> None:
    size = megabytes(source.stat().st_size)
    if shutil.disk_usage(source.parent).free < KEEP_FP16_BYTES:
        source.unlink()
        print(f"Deleted {source.name} ({size}), as room is scarce here; another --quant fetches it again.")
    else:
        print(f"Kept {source} ({size}) for other --quant values; delete it if you need the room.")


def main(argv: list[str]) -> int:
    settings = load(argv)
    logs.configure(as_json=settings.log_json)
    with serving.bind(settings) as bound:  # a taken port is told now, not after the download
        with logs.printed():
            model = apart.prepared(choose(settings), settings.data_dir / apart.COPIES)
        os.umask(0o077)  # from here on it is what people say that is written
        return serving.serve(settings, bound, model, is_demo=settings.demo)


if __name__ == "__main__":
    console.run(main)
