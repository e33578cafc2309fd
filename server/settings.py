"""One table makes the dataclass, the SPARROW_* variables, the CLI flags and the README's list of flags."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from server.errors import UsageError

ENV_PREFIX = "SPARROW_"


def _setting(default: Any, help: str, *, metavar: str | None = None, least: int | None = None) -> Any:
    """One row of the table: the type is the field's annotation, `least` the smallest number that makes sense."""
    return field(default=default, metadata={"help": help, "metavar": metavar, "least": least})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that a start of the server decides. Values are validated when they come from flags or variables."""

    host: str = _setting("127.0.0.1", "address to listen on; 0.0.0.0 lets other devices in", metavar="ADDRESS")
    port: int = _setting(8000, "port to listen on", metavar="N", least=0)
    ctx: int = _setting(
        4096, "tokens that one conversation may hold; memory grows with slots × ctx", metavar="N", least=64
    )
    slots: int = _setting(4, "conversations that are answered at the same time", metavar="N", least=1)
    threads: int = _setting(0, "CPU threads; 0 takes what a first start measures as fastest here", metavar="N", least=0)
    step_ms: int = _setting(
        150,
        "milliseconds that a step may take while somebody reads along; others' prompts fill it",
        metavar="N",
        least=10,
    )
    queue: int = _setting(
        32,
        "requests that may wait for a slot; one client gets three quarters of them, half while others wait",
        metavar="N",
        least=1,
    )
    answer_s: int = _setting(
        1800, "seconds that one answer may take; it can be continued then; 0 for no limit", metavar="N", least=0
    )
    snapshot_mb: int = _setting(
        512,
        "megabytes of disk for what idle chats remember, so that a restart reads nothing twice; 0 keeps none",
        metavar="N",
        least=0,
    )
    quant: str | None = _setting(
        None, "quantization to serve, by llama.cpp's name (IQ4_NL if not given, Q8_0 for the demo)", metavar="NAME"
    )
    model: Path | None = _setting(None, "serve this GGUF file, without fetching or quantizing", metavar="PATH")
    demo: bool = _setting(False, "serve the tiny demo model of the repository: no network, seconds to start")
    prequantized: bool = _setting(False, "fetch the official file of that quant instead of quantizing fp16 here")
    endpoint: str | None = _setting(None, "hub to fetch from, instead of the public one and its mirror", metavar="URL")
    models_dir: Path | None = _setting(
        None, "where models are kept (models/ of this checkout if not given)", metavar="DIR"
    )
    data_dir: Path = _setting(Path("data"), "where conversations are kept", metavar="DIR")
    strict: bool = _setting(False, "refuse API requests with unknown or ignored fields, instead of warning")
    auth: bool = _setting(
        True, "ask other devices for the pairing token, or a key, when --host is an address that they reach"
    )
    api_key_file: Path | None = _setting(
        None,
        "file with a key a line, for programs: from then on they need one on this machine, too; "
        "the page here goes on without",
        metavar="PATH",
    )
    ssl_certfile: Path | None = _setting(None, "certificate for https, with its chain, as PEM", metavar="PATH")
    ssl_keyfile: Path | None = _setting(None, "that certificate's private key, without a password", metavar="PATH")
    cors: str | None = _setting(
        None, "sites whose pages may use the API, like https://app.example.org, with commas between", metavar="ORIGIN"
    )
    allow_host: str | None = _setting(
        None, "names by which this server may be called too (a proxy's), with commas between", metavar="NAME"
    )
    single_user: bool = _setting(False, "show one list of conversations in all browsers, instead of one in each")
    idle_unload: float = _setting(
        0,
        "minutes without a request after which the model's memory is freed until the next one; 0 keeps it",
        metavar="MINUTES",
        least=0,
    )
    grace_s: int = _setting(
        10, "seconds that running requests have to end when the server is stopped", metavar="N", least=0
    )
    log_json: bool = _setting(False, "write all that is said as JSON, one object a line, with a line for each request")
    browser: bool = _setting(True, "open the browser when the server is ready")

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return self.url_at(host)

    def url_at(self, host: str) -> str:
        """The server's address by one of its names or addresses."""
        scheme = "https" if self.ssl_certfile else "http"
        return f"{scheme}://[{host}]:{self.port}/" if ":" in host else f"{scheme}://{host}:{self.port}/"

    def with_port(self, port: int) -> Settings:
        """Port 0 asks the system for a free one; this is the answer."""
        return replace(self, port=port)


class _Parser(argparse.ArgumentParser):
    """argparse prints its whole usage with every error; a person needs the one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _convert(name: str, kind: str, text: str, least: int | None) -> Any:
    """Text of a flag or variable -> value; `name` is how the person spelt it, for the message."""
    if kind == "bool":
        if text.lower() not in {"1", "0", "true", "false", "yes", "no"}:
            raise UsageError(f"{name}={text!r}: give 1 or 0.")
        return text.lower() in {"1", "true", "yes"}
    if kind in ("int", "float"):
        return _number(name, kind, text, least)
    return Path(text).expanduser() if kind.startswith("Path") else text


def _number(name: str, kind: str, text: str, least: int | None) -> float:
    try:
        value = int(text) if kind == "int" else float(text)
    except ValueError:
        raise UsageError(f"{name}: {text!r} is no {'whole ' if kind == 'int' else ''}number.") from None
    if not math.isfinite(value):
        raise UsageError(f"{name}: {text!r} is no number that can be counted to.")
    if least is not None and value < least:
        raise UsageError(f"{name}: {text} is too small; the least is {least}.")
    return value


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def flag_of(row: Field[Any]) -> str:
    """How the setting is spelt on the command line: a switch that is on by default has a flag to turn it off."""
    return _flag(f"no_{row.name}" if row.default is True else row.name)


def help_of(row: Field[Any]) -> str:
    """What the flag does, in a few words."""
    return ("do not " if row.default is True else "") + str(row.metadata["help"])


def parser(prog: str, description: str) -> argparse.ArgumentParser:
    """The CLI of the table. Flags are strings until `load` converts them, so that every message names its flag."""
    made = _Parser(prog=prog, description=description, allow_abbrev=False)
    for row in fields(Settings):
        text = help_of(row) + ("" if row.default in (None, True, False) else f" (default: {row.default})")
        if row.type == "bool":
            set_to = str(int(not row.default))
            made.add_argument(flag_of(row), dest=row.name, action="store_const", const=set_to, help=text)
        else:
            made.add_argument(flag_of(row), dest=row.name, metavar=row.metadata["metavar"], help=text)
    return made


def load(argv: Sequence[str], environ: Mapping[str, str] = os.environ, prog: str = "serve.py") -> Settings:
    """Flags win over SPARROW_* variables, those over the defaults. Raises UsageError with one line for a person."""
    given = vars(parser(prog, "Serve a chat page and an OpenAI-compatible API on this machine's CPU.").parse_args(argv))
    values: dict[str, Any] = {}
    for row in fields(Settings):
        assert row.default is not MISSING
        variable = ENV_PREFIX + row.name.upper()
        name, text = (
            (_flag(row.name), given[row.name]) if given[row.name] is not None else (variable, environ.get(variable))
        )
        if text is not None and text != "":
            values[row.name] = _convert(name, str(row.type), text, row.metadata["least"])
    settings = Settings(**values)
    if settings.port > 65535:
        raise UsageError(f"--port: {settings.port} is no port; give 1 to 65535.")
    if settings.demo and settings.model:
        raise UsageError("--demo and --model exclude each other: choose one.")
    if bool(settings.ssl_certfile) != bool(settings.ssl_keyfile):
        raise UsageError("--ssl-certfile and --ssl-keyfile belong together: give both.")
    return settings
