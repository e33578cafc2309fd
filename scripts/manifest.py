"""models/manifest.toml: which files of which revision are fetched, and what is known about their bytes."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from server.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MODELS = Path(__file__).resolve().parent.parent / "models"


@dataclass(frozen=True)
class Remote:
    """One file on a hub. sha256 and n_bytes are None where only the hub knows them."""

    repo: str
    revision: str
    name: str
    sha256: str | None = None
    n_bytes: int | None = None


def official(quant: str, path: Path = MODELS / "manifest.toml") -> Remote:
    """The pinned file of that level. Raises UsageError with the levels that there are."""
    manifest = tomllib.loads(path.read_text("utf-8"))
    level = {"f16": "fp16"}.get(quant.lower(), quant.lower())
    if level not in manifest["files"]:
        levels = ", ".join(manifest["files"])
        raise UsageError(f"--quant {quant}: there is no official file of that level; there are {levels}.")
    file = manifest["files"][level]
    return Remote(manifest["repo"], manifest["revision"], file["name"], file.get("sha256"), file.get("bytes"))


def elsewhere(repo: str, revision: str | None, quant: str) -> Remote:
    """The file of that level in another repository, by the names that Qwen's repositories have."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UsageError(f"--repo {repo}: give it as OWNER/NAME.")
    stem = repo.rpartition("/")[2].lower().removesuffix("-gguf")
    return Remote(repo, revision or "main", f"{stem}-{quant.lower()}.gguf")
