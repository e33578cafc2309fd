"""The languages of the page: every text has its translation, and the reader's own language is chosen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server import errors, i18n, templating
from server.assets import assets
from server.engine.info import ModelInfo
from server.engine.sampling import SamplingParams
from server.preferences import Preferences
from server.templating import STATIC, TEMPLATES, environment, render

MODEL = ModelInfo("Qwen2.5-0.5B-Instruct", "IQ4_NL", 4096)


def page(language: str, model: ModelInfo = MODEL) -> str:
    return render(
        "chat.html",
        language,
        model=model,
        conversation=None,
        recent=(),
        more="",
        query="",
        thread=(),
        memory_begins=None,
        can_forget=False,
        context_used=None,
        preferences=Preferences(),
        official=SamplingParams(),
        form_token="token",
        form_key="key",
    )


def texts_of_the_templates() -> set[str]:
    source = environment(i18n.Catalogue("en", {}))
    found = set()
    for path in TEMPLATES.glob("*.html"):
        for _, _, message in source.extract_translations(path.read_text("utf-8")):  # type: ignore[attr-defined]
            found.add(message[0] if isinstance(message, tuple) else message)  # a tuple where it has values
    return found


@pytest.mark.parametrize("path", sorted(i18n.LOCALE.glob("*.po")), ids=lambda path: path.stem)
def test_every_catalogue_has_every_text_and_no_other(path: Path) -> None:
    assert set(i18n.read_po(path).texts) == texts_of_the_templates()


def test_every_error_that_a_reader_may_meet_has_words_for_people() -> None:
    shown = set(re.findall(r'data-key="(\w+)"', page("en")))
    found = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, Exception)]
    codes = {error.code for error in found if issubclass(error, errors.SparrowError)}
    # These name a field of a program's request; the page's own script does not send them.
    programs = {"invalid_request", "invalid_value", "unsupported_media_type"}
    assert codes - shown == {"usage_error", "model_file_error"} | programs


@pytest.mark.parametrize(
    "header, language",
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("zh", "zh"),
        ("ZH-Hant-TW", "zh"),
        ("en-GB,en;q=0.9,zh;q=0.8", "en"),
        ("de-DE,de;q=0.9,zh;q=0.5,en;q=0.4", "zh"),
        ("fr, en;q=0.1, zh;q=0.2", "zh"),
        ("en;q=0, zh", "zh"),
        ("*", "en"),
        ("zh;q=nonsense", "en"),
        ("zh;q=1.2.3", "en"),
        (";;,,=", "en"),
    ],
)
def test_the_readers_first_language_that_there_is(header: str, language: str) -> None:
    assert i18n.choose(header, {"en", "zh"}) == language


def test_a_chinese_reader_gets_a_chinese_page() -> None:
    chinese = page("zh-CN,zh;q=0.9")
    assert '<html lang="zh-Hans" ' in chinese
    names = "消息 发送 停止 新对话 重试 编辑 重新生成 继续 复制 删除 搜索 设置 导出 导入"
    assert [name for name in names.split() if not re.search(f'[">]{name}["<]', chinese)] == []
    # What is left in Latin letters is the page's own code and the model's name.
    words = re.sub(r"<[^>]*>|{\w+}", " ", chinese.replace("Qwen2.5-0.5B-Instruct", "").replace("IQ4_NL", ""))
    ours = {
        "Enter",
        "Shift",
        "Esc",
        "Ctrl",
        "Markdown",
        "JSON",
        "English",
        "top",
        "MB",
        "llama",
        "cpp",
        "Open",
        "WebUI",
        "OpenAI",
    }
    assert set(re.findall(r"[A-Za-z]{2,}", words)) == ours


@pytest.mark.parametrize("language, words", [("en", "This is the demo."), ("zh", "这是演示。")])
def test_the_demo_says_that_it_is_one(language: str, words: str) -> None:
    assert words in page(language, ModelInfo("sparrow-demo", "F16", 4096, is_demo=True))
    assert words not in page(language)


def test_a_catalogue_is_read_with_continuations_and_escapes(tmp_path: Path) -> None:
    path = tmp_path / "xx.po"
    path.write_text(
        '# a comment\nmsgid ""\nmsgstr "Language: xx-Test\\n"\n\nmsgid "one "\n"two"\nmsgstr "eins \\"zwei\\""\n'
        'msgid "untranslated"\nmsgstr ""\n'
    )
    catalogue = i18n.read_po(path)
    assert (catalogue.tag, catalogue.texts) == ("xx-Test", {"one two": 'eins "zwei"'})
    assert catalogue.gettext("untranslated") == "untranslated"


def test_a_language_is_added_by_adding_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "de.po").write_text(
        'msgid ""\nmsgstr "Language: de\\nX-Name: Deutsch\\n"\n\nmsgid "Send"\nmsgstr "Senden"\n'
    )
    monkeypatch.setattr(i18n, "LOCALE", tmp_path)
    known = (i18n.load, templating._catalogues, templating._environments)
    for function in known:
        function.cache_clear()
    try:
        german, english = page("de-AT,en;q=0.5"), page("en")
    finally:
        for function in known:
            function.cache_clear()
    assert '<html lang="de" ' in german and 'aria-label="Senden"' in german and "Senden" not in english
    assert '<option value="de" lang="de">Deutsch</option>' in english


def test_a_line_that_is_not_understood_is_named(tmp_path: Path) -> None:
    path = tmp_path / "xx.po"
    path.write_text('msgid "a"\nmsgctxt "b"\n')
    with pytest.raises(ValueError, match="xx.po, line 2"):
        i18n.read_po(path)


def test_the_first_visit_stays_light() -> None:
    """The page and every file that it names, as they go over the wire: HTML plain, files compressed."""
    html = page("zh")
    parts = {"page": len(html.encode())}
    for name in sorted(set(re.findall(r"/static/\w+/([\w.-]+)", html))):
        asset = assets()[name]
        parts[name] = len(asset.small or asset.content)
    print("first visit, bytes:", parts, "together", sum(parts.values()))
    assert {"main.js", "chat.css", "stream.js"} <= set(parts)
    assert sum(parts.values()) < 60_000


def test_what_an_editor_leaves_beside_the_files_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.assets.STATIC", tmp_path)
    for name in ("chat.css", "chat.css~", ".chat.css.swp", ".DS_Store"):
        (tmp_path / name).write_text("p {}")
    assert set(assets.__wrapped__()) == {"chat.css"}


def test_every_module_that_the_page_needs_is_named_in_its_head() -> None:
    """Else it is found only when the one that imports it has come: a round trip each."""
    named = set(re.findall(r"/static/\w+/(\w+\.js)", page("en")))
    needed, todo = set(), ["main.js"]
    while todo:
        name = todo.pop()
        needed.add(name)
        todo += (
            set(re.findall(r'^(?:import|} from|import .* from) "\./(\w+\.js)"', (STATIC / name).read_text(), re.M))
            - needed
        )
    assert named == needed


def test_no_script_is_longer_than_300_lines() -> None:
    for path in STATIC.glob("*.js"):
        text = path.read_text()
        assert text.startswith("// @ts-check\n") and text.count("\n") <= 300, path.name
