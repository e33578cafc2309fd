"""A device of the network, before and after it is paired."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.browser.chat import box, say_and_wait
from tests.browser.conftest import PHONE, NewPage, Shot
from tests.browser.test_access import violations
from tests.server_process import ServerProcess


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairing")


@pytest.fixture(scope="module")
def lan_server(data: Path) -> Iterator[ServerProcess]:
    with ServerProcess(["--demo", "--host", "0.0.0.0", "--data-dir", str(data)]) as server:
        yield server


def test_the_token_is_typed_without_a_script(
    new_page: NewPage, lan_server: ServerProcess, data: Path, shot: Shot
) -> None:
    page = new_page(lan_server.url + "/?q=bird", locale="zh-CN", java_script_enabled=False, **PHONE)
    expect(page.get_by_role("heading")).to_have_text("这台设备还没有配对")
    shot(page, "pairing-phone")
    field = page.get_by_label("配对码")
    field.fill("abcd-abcd-abcd-abcd")
    field.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("这个配对码不对。")
    token = (data / "pairing").read_text().strip()
    field.fill(token.upper().replace("-", " "))
    page.get_by_role("button", name="配对这台设备").click()
    expect(page.get_by_role("textbox", name="消息")).to_be_visible()
    assert page.url == lan_server.url + "/?q=bird"


def test_the_address_with_the_token_leads_to_a_chat(new_page: NewPage, lan_server: ServerProcess, data: Path) -> None:
    page = new_page(f"{lan_server.url}/?pair={(data / 'pairing').read_text().strip()}")
    assert page.url == lan_server.url + "/"
    say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
    page.context.clear_cookies()
    box(page).fill("Hello")
    box(page).press("Enter")
    expect(page.locator("#problem")).to_contain_text("This device is not paired with Sparrow any more")
    expect(box(page)).to_have_value("Hello")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_the_pages_of_the_guard(new_page: NewPage, lan_server: ServerProcess, scheme: str) -> None:
    options: dict[str, Any] = {"color_scheme": scheme, "bypass_csp": True, **PHONE}
    page = new_page(lan_server.url + "/?pair=wrong", **options)
    expect(page.get_by_role("alert")).to_be_visible()
    assert not violations(page, Axe())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
