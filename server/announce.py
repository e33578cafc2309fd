"""What the terminal says when the server is ready: its address, and how other devices come in."""

from __future__ import annotations

import io
import os
import shutil
import socket
import sys
import threading
import webbrowser
from dataclasses import dataclass

import segno

from server import logs
from server.access import TOKEN_FILE, Access, grouped
from server.settings import Settings

ANY = {"0.0.0.0": socket.AF_INET, "::": socket.AF_INET6}
"""Addresses to listen on that are none to go to."""
_FAR = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses that are nobody's, kept for documents."""


@dataclass(frozen=True)
class Addresses:
    """here: for a browser on this machine; there: for other devices, "" where they can't reach it. With the token."""

    here: str
    there: str


def addresses(settings: Settings, access: Access) -> Addresses:
    query = f"?pair={grouped(access.token)}" if access.token else ""
    here = settings.url + query
    if access.is_local:
        return Addresses(here, "")
    return Addresses(here, settings.url_at(_reachable(settings.host)) + query)


def _reachable(host: str) -> str:
    """The address by which others find this machine."""
    if host not in ANY:
        return host
    return lan_address(ANY[host]) or lan_address(socket.AF_INET) or socket.gethostname()


def lan_address(family: socket.AddressFamily) -> str:
    """The one that packets to far away would come from; "" without a network. None is sent."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((_FAR[family], 9))
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def announce(settings: Settings, access: Access) -> None:
    """A token is shown to people only: what programs read is kept, and would open the door to who finds it."""
    found = addresses(settings, access)
    shown = found.there or found.here
    if logs.is_json():
        bare = shown.partition("?")[0]
        said = f" Its pairing token stands in {settings.data_dir / TOKEN_FILE}." if access.token else ""
        logs.say(f"Sparrow is ready: {bare} {said}", url=bare)
    else:
        more = _for_other_devices(settings, access, found) if found.there else ""
        logs.say(f"\nSparrow is ready:  {shown}\n{more}Ctrl-C stops it.")
    # Without a screen a terminal browser would take the terminal over.
    has_screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if settings.browser and has_screen:
        threading.Thread(target=webbrowser.open, args=(found.here,), daemon=True).start()


def _for_other_devices(settings: Settings, access: Access, found: Addresses) -> str:
    here = f"On this machine:   {found.here}\n" if settings.host in ANY else ""
    if not access.token:
        return here + "WARNING: with --no-auth everybody who reaches this address can chat here.\n"
    plain = "" if settings.ssl_certfile else "Without --ssl-certfile, others in your network could read along.\n"
    token, file, code = grouped(access.token), settings.data_dir / TOKEN_FILE, qr_code(found.there)
    return (
        f"{here}\nA device opens that address once{', or scans this' if code else ''}; "
        f"programs send {token} as their key.\n{code}{plain}To forget all devices, delete {file} and start again.\n"
    )


def qr_code(text: str) -> str:
    """For a terminal, in its colours; "" where there is none or it does not fit."""
    code = segno.make_qr(text, error="l")
    columns, lines = shutil.get_terminal_size((0, 0))
    border = 2
    width = code.symbol_size(border=border)[0]
    can_draw = sys.stdout.isatty() and (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    if not can_draw or width > columns or width // 2 + 8 > lines:
        return ""
    drawn = io.StringIO()
    code.terminal(drawn, border=border, compact=True)
    return drawn.getvalue()
