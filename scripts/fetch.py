"""Fetch a model file from a hub, resumable and verified: python3 scripts/fetch.py [--quant fp16]"""

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import bootstrap

if __name__ == "__main__":
    bootstrap.enter()

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import console
import folder
import httpx2
import manifest
import quantize
from folder import megabytes
from huggingface_hub import HfFileMetadata, constants, get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from manifest import Remote
from tqdm import tqdm

from server import gguf_file
from server.errors import ModelFileError, UsageError

ENDPOINTS = ("https://huggingface.co", "https://hf-mirror.com")
QUANTIZED_SHARE = 0.45
"""Room that quantizing an fp16 file takes beside it, as a part of its size: the result, and for a while a bit more."""


class Unreachable(Exception):
    """This endpoint can't be had now; another one may."""


def endpoints(given: Sequence[str]) -> list[str]:
    """The person's own choice alone, by flag or HF_ENDPOINT; else the public hub and its mirror."""
    chosen = list(given) or [os.environ.get("HF_ENDPOINT", "")]
    found = [url.rstrip("/") for url in chosen if url] or list(ENDPOINTS)
    wrong = next((url for url in found if urlsplit(url).scheme not in ("http", "https")), None)
    if wrong:
        raise UsageError(f"--endpoint {wrong}: give a URL that begins with https:// or http://.")
    return found


def fetch(remote: Remote, target: Path, hubs: Sequence[str], *, drop_duplicate: bool = False) -> Path:
    """Put the file at `target`, verified and whole, or not at all. The folder of `target` must be held.

    What has arrived stays beside it when this is cut off, and the next call goes on from there, from any endpoint.
    Raises UsageError when no endpoint has it, the disk is too small, or the bytes are wrong.
    """
    if target.exists():
        gguf_file.read(target)
        print(f"{target} is there already.")
        return target
    reasons = []
    for hub in hubs:
        try:
            partial = _fetch_from(hub, remote, target)
        except Unreachable as error:
            print(f"{hub} can't be used: {error}.", flush=True)
            reasons.append(f"{hub}: {error}")
            continue
        if drop_duplicate:
            quantize.drop_duplicate(partial)
        folder.put_in_place(partial, target)
        print(f"{target}: {megabytes(target.stat().st_size)}, verified.", flush=True)
        return target
    raise UsageError(f"{remote.name} can't be fetched ({'; '.join(reasons)}).")


def _fetch_from(hub: str, remote: Remote, target: Path) -> Path:
    """The verified file, still under another name."""
    token = _token(hub)
    url = hf_hub_url(remote.repo, remote.name, revision=remote.revision, endpoint=hub)
    stated = _ask(hub, url, remote, token)
    sha256, n_bytes = _agreed(hub, remote, stated)
    partial = target.with_name(f"{target.name}.{(sha256 or stated.etag or 'x')[:12]}.partial")
    for old in set(target.parent.glob(f"{target.name}.*.partial")) - {partial}:
        old.unlink()
    _download(hub, url, token, partial, n_bytes)
    _verify(partial, sha256, n_bytes)
    return partial


def _token(hub: str) -> str | None:
    """HF_TOKEN goes to the public hub and to the endpoint in HF_ENDPOINT; no other is told it."""
    trusted = {ENDPOINTS[0], os.environ.get("HF_ENDPOINT", "").rstrip("/")}
    return get_token() if hub in trusted else None


def _ask(hub: str, url: str, remote: Remote, token: str | None) -> HfFileMetadata:
    """What the hub says about the file. Raises Unreachable, or UsageError when it says that there is none."""
    try:
        stated = get_hf_file_metadata(url, token=token or False, endpoint=hub)
    except OfflineModeIsEnabled:
        raise UsageError(f"HF_HUB_OFFLINE is set and {remote.name} is not here: unset it or copy the file.") from None
    except (GatedRepoError, RepositoryNotFoundError) as error:
        code = error.response.status_code
        raise UsageError(f"{hub} has no {remote.repo} for you ({code}): check the name, or set HF_TOKEN.") from None
    except RevisionNotFoundError:
        raise UsageError(f"{hub}: {remote.repo} has no revision {remote.revision}.") from None
    except EntryNotFoundError:
        raise UsageError(f"{hub}: {remote.repo} has no file {remote.name} at {remote.revision}.") from None
    except HfHubHTTPError as error:
        raise _http_error(hub, error) from None
    except (httpx2.HTTPError, OSError) as error:
        raise Unreachable(_plainly(error)) from None
    if not stated.commit_hash or not stated.etag:
        raise Unreachable("what answers there is no hub (a proxy or a login page?)")
    return stated


def _http_error(hub: str, error: HfHubHTTPError) -> Exception:
    code = error.response.status_code
    if code == 401:
        return UsageError(f"{hub} refuses the token (401): check HF_TOKEN, or unset it.")
    return Unreachable(f"it answers with {code}")


def _plainly(error: Exception) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "it does not answer in time"
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__


def _agreed(hub: str, remote: Remote, stated: HfFileMetadata) -> tuple[str | None, int]:
    """SHA-256 and size, of which the hub's word and the manifest's must be the same."""
    etag = stated.etag or ""
    sha256 = etag if len(etag) == 64 else None
    if remote.sha256 and sha256 and sha256 != remote.sha256:
        raise UsageError(f"{hub} states another SHA-256 for {remote.name} than models/manifest.toml: not fetched.")
    if stated.size is None:
        raise Unreachable("it does not state the file's size")
    if remote.n_bytes is not None and remote.n_bytes != stated.size:
        raise UsageError(f"{hub} states {stated.size} bytes for {remote.name}, not {remote.n_bytes}: not fetched.")
    return remote.sha256 or sha256, stated.size


def _download(hub: str, url: str, token: str | None, partial: Path, n_bytes: int) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    if have > n_bytes:
        partial.unlink()
        have = 0
    extra = int(n_bytes * QUANTIZED_SHARE) if "fp16" in partial.name else 0
    folder.need_room(partial.parent, n_bytes - have + extra, "The model")
    how = f"going on after {megabytes(have)} of" if have else "fetching"
    print(f"{hub}: {how} {megabytes(n_bytes)}", flush=True)
    headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {token}"} if token else {})}
    try:
        with partial.open("ab") as out:
            http_get(url, out, resume_size=have, headers=headers, expected_size=n_bytes, displayed_filename="Fetching")
    except HfHubHTTPError as error:
        raise _http_error(hub, error) from None
    except (httpx2.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UsageError(f"{partial} can't be written: {error.strerror}.") from None
        raise Unreachable(_plainly(error).splitlines()[0]) from None


def _verify(partial: Path, sha256: str | None, n_bytes: int) -> None:
    """Raises UsageError and deletes the file when it is not what was promised."""
    digest = hashlib.sha256()
    bar = tqdm(total=n_bytes, desc="Verifying", unit="B", unit_scale=True, disable=None)
    with partial.open("rb") as file, bar:
        for chunk in iter(lambda: file.read(gguf_file.CHUNK), b""):
            digest.update(chunk)
            bar.update(len(chunk))
    if sha256 is None:
        print(f"The hub states no SHA-256 for {partial.name}: only its size and its header are checked.")
    elif digest.hexdigest() != sha256:
        partial.unlink()
        raise UsageError(f"what arrived as {partial.name} has a wrong SHA-256 and was deleted: start again.")
    try:
        gguf_file.read(partial)
    except ModelFileError:
        partial.unlink()
        raise


def _parser() -> console.Parser:
    about = "Fetch a model file from a hub; what is cut off goes on at the next start."
    parser = console.Parser(prog="fetch.py", description=about, allow_abbrev=False)
    parser.add_argument("--quant", default="fp16", metavar="NAME", help="which level of the model (default: fp16)")
    parser.add_argument("--repo", metavar="R", help="another repository than models/manifest.toml has")
    parser.add_argument("--revision", metavar="REV", help="another revision (default: the pinned one, or main)")
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        action="append",
        default=[],
        help="the hub to ask; several are tried in turn (default: HF_ENDPOINT, else " + ", ".join(ENDPOINTS) + ")",
    )
    parser.add_argument("--dir", type=Path, default=manifest.MODELS, help="where to put it (default: models)")
    parser.add_argument("--drop-duplicate", action="store_true", help="leave out an output.weight that is a copy")
    return parser


def main(argv: list[str]) -> int:
    given = _parser().parse_args(argv)
    constants.DOWNLOAD_CHUNK_SIZE = gguf_file.CHUNK  # what a cut costs; the library's own is 10 MB
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its warnings are paragraphs with signed URLs
    if given.repo or given.revision:
        known = manifest.official("fp16")
        remote = manifest.elsewhere(given.repo or known.repo, given.revision, given.quant)
    else:
        remote = manifest.official(given.quant)
    hubs = endpoints(given.endpoint)
    if constants.HF_HUB_OFFLINE:
        hubs = hubs[:1]
    with folder.alone(given.dir):
        fetch(remote, given.dir / remote.name, hubs, drop_duplicate=given.drop_duplicate)
    return 0


if __name__ == "__main__":
    console.run(main)
