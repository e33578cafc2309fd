"""Who may come in, as the settings and two files say it: hosts, the pairing token, keys, origins."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from server.access import Access, grouped, open_access
from server.errors import TooManyTries, UsageError
from server.settings import Settings
from server.tries import N_TRIES, Tries

LAN = "192.168.1.5"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("# ours\nsk-first-key  laptop\n\nsk-second-key\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("host", "on_loopback", "on_lan"),
    [
        *[
            (name, True, True)
            for name in ("localhost", "LOCALHOST:8000", "a.localhost:1", "127.0.0.1:8000", "127.9.9.9")
        ],
        *[(name, True, True) for name in ("[::1]:8000", "[::1]", "chat.example.org", "Chat.Example.org.:443")],
        *[(name, False, True) for name in (f"{LAN}:8000", "10.0.0.1", "[fe80::1]:8000", socket.gethostname())],
        (socket.gethostname().partition(".")[0] + ".local:8000", False, True),
        *[(name, False, False) for name in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80")],
        *[
            (name, False, False)
            for name in ("", ":8000", "evil.example@localhost", "localhost:8000:8000", "a b", "[x]")
        ],
        *[(name, False, False) for name in ("0x7f.1", "2130706433", "localhost/..", "127.0.0.1:port")],
    ],
)
def test_a_name_is_ours_or_refused(tmp_path: Path, host: str, on_loopback: bool, on_lan: bool) -> None:
    settings = Settings(allow_host="other, chat.example.org", data_dir=tmp_path)
    assert open_access(settings, "127.0.0.1").goes_by(host) == on_loopback
    assert open_access(settings, "0.0.0.0").goes_by(host) == on_lan


def test_on_loopback_nothing_is_asked_and_no_token_made(tmp_path: Path) -> None:
    assert open_access(Settings(data_dir=tmp_path), "::1") == Access(hosts=frozenset({"127.0.0.1"}))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", LAN, "fe80::1%eth0"])
def test_beyond_it_a_token_is_made_and_kept_for_its_owner_only(tmp_path: Path, address: str) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    first, again = open_access(settings, address), open_access(settings, address)
    assert first.token == again.token and len(first.token) == 16
    path = tmp_path / "data" / "pairing"
    assert path.read_text() == grouped(first.token) + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.unlink()
    assert open_access(settings, address).token != first.token
    assert open_access(Settings(data_dir=tmp_path, auth=False), address).token == ""


def test_a_token_is_known_as_people_type_it() -> None:
    access = Access(token="abcdefghjkmnpqrs")
    for typed in ("abcdefghjkmnpqrs", "abcd-efgh-jkmn-pqrs", " ABCD EFGH-JKMN pqrs\n"):
        assert access.knows(typed) == "paired"
    for typed in ("", "abcd", "abcdefghjkmnpqrt", "abcdefghjkmnpqrsabcdefghjkmnpqrs", "ａbcdefghjkmnpqrs", "\ud800"):
        assert access.knows(typed) == ""
    assert Access().knows("") == "" and not Access().is_paired("")


def test_the_cookie_is_of_this_token_and_is_not_the_token() -> None:
    one, other = Access(token="abcdefghjkmnpqrs"), Access(token="abcdefghjkmnpqrt")
    assert one.is_paired(one.cookie_value) and not one.is_paired(other.cookie_value) and not one.is_paired("")
    assert one.cookie_name != other.cookie_name and one.token not in one.cookie_value


def test_keys_are_one_a_line(tmp_path: Path, keys: Path) -> None:
    access = open_access(Settings(api_key_file=keys, data_dir=tmp_path), "127.0.0.1")
    assert access.knows("sk-first-key") == access.knows("sk-second-key") == "key"
    for wrong in ("", "laptop", "sk-first-key  laptop", "SK-FIRST-KEY", "# ours"):
        assert access.knows(wrong) == ""
    assert "sk-first" not in repr(access)


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        ("sk-first-key", 0o640, "run chmod 600"),
        ("sk-first-key", 0o604, "can be read by other users"),
        ("# only this\n\n", 0o600, "holds no key"),
        ("short\n", 0o600, "fewer than 8 letters"),
        ("schlüssel-schlüssel\n", 0o600, "no header can carry"),
    ],
)
def test_a_file_of_keys_that_can_not_be_used_is_one_line(tmp_path: Path, content: str, mode: int, said: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(UsageError) as caught:
        open_access(Settings(api_key_file=path, data_dir=tmp_path), "127.0.0.1")
    assert said in caught.value.message and str(path) in caught.value.message and "\n" not in caught.value.message


def test_other_mistakes_are_one_line_too(tmp_path: Path, keys: Path) -> None:
    (tmp_path / "pairing").write_text("not a token\n")
    for given, said in [
        (Settings(api_key_file=tmp_path / "none"), "can't be read: No such file"),
        (Settings(api_key_file=tmp_path), "can't be read: Is a directory"),
        (Settings(api_key_file=keys, auth=False), "exclude each other"),
        (Settings(allow_host="http://x"), "--allow-host: 'http://x' is no name"),
        (Settings(cors="app.example.org"), "--cors: 'app.example.org' is no origin"),
        (Settings(cors="https://app.example.org/"), "without a path"),
        (Settings(cors="https://[x"), "is no origin"),
        (Settings(data_dir=tmp_path), "holds no pairing token: delete it"),
        (Settings(data_dir=Path("/proc/nothing")), "give another --data-dir"),
    ]:
        with pytest.raises(UsageError) as caught:
            open_access(given, LAN)
        assert said in caught.value.message and "\n" not in caught.value.message


def test_many_different_wrong_ones_have_to_wait_and_the_same_one_has_not() -> None:
    tries = Tries()
    for n in range(N_TRIES):
        tries.refuse_guessing("2001:db8::1")
        tries.note("2001:db8::1", f"guess {n}")
        tries.note("10.0.0.1", "an old key")
    with pytest.raises(TooManyTries):
        tries.refuse_guessing("2001:db8::2")  # the same network
    tries.refuse_guessing("2001:db8:0:1::1")
    tries.refuse_guessing("10.0.0.1")


def test_many_senders_fill_no_memory() -> None:
    tries = Tries()
    for n in range(3000):
        tries.note(f"10.0.{n // 256}.{n % 256}", "x")
    assert len(tries._wrong) <= 1000
