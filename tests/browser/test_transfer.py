"""Conversations as files: out, and back in another browser."""

from __future__ import annotations

import json
from pathlib import Path

from playwright.sync_api import expect

from tests.browser.chat import answers, button
from tests.browser.conftest import NewPage, Shot
from tests.browser.test_conversation_list import begin, links, menu
from tests.server_process import ServerProcess


def test_a_conversation_and_all_of_them_go_out_and_come_back(
    new_page: NewPage, demo_server: ServerProcess, tmp_path: Path, shot: Shot
) -> None:
    page = new_page(demo_server.url)
    begin(page, "Count from 1 to 3.", "我叫小明。")
    shown = menu(page, "我叫小明。")
    with page.expect_download() as markdown:
        shown.get_by_role("link", name="Export as Markdown").click()
    assert markdown.value.suggested_filename.endswith(".md") and "小明" in markdown.value.suggested_filename
    assert "我叫小明。" in markdown.value.path().read_text("utf-8")
    button(page, "Settings").click()
    with page.expect_download() as every:
        page.get_by_role("dialog").get_by_role("link", name="Export", exact=True).click()
    file = tmp_path / "all.json"
    every.value.save_as(file)
    assert json.loads(file.read_text("utf-8"))
    other = new_page(demo_server.url)
    button(other, "Settings").click()
    with other.expect_file_chooser() as chooser:
        button(other, "Import").click()
    chooser.value.set_files(file)
    expect(other.locator("#import-result")).to_contain_text("Imported: 2.")
    other.locator("#import-result").scroll_into_view_if_needed()
    shot(other, "import")
    expect(other.locator("#list a")).to_have_count(2)
    with other.expect_file_chooser() as chooser:
        button(other, "Import").click()
    broken = tmp_path / "broken.json"
    broken.write_text('{"<img src=x onerror=alert(1)>": ')
    chooser.value.set_files(broken)
    expect(other.locator("#import-result")).not_to_contain_text("Import")
    assert other.locator("#import-result p").count() >= 1 and other.locator("#import-result img").count() == 0
    button(other, "Close").click()
    links(other).filter(has_text="Count").click()
    expect(answers(other)).to_have_text("1, 2, 3")
