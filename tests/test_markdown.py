"""Markdown to HTML: what it makes, what it never lets through, and that every block stands for itself."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.markdown import MARK, blocks, html, render, tidy
from tests.answer_page import text_of

CODE = '<div class="code"><pre tabindex="0" dir="ltr"><code{}>{}</code></pre></div>\n'

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "[a](javascript:alert(1))",
    "[a](JaVaScRiPt:alert(1))",
    "[a](java\nscript:alert(1))",
    "[a](&#106;avascript:alert(1))",
    "[a](\x01javascript:alert(1))",
    "[a](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[a](vbscript:x)",
    "[a](//evil.example)",
    "[a]()",
    "![a](javascript:alert(1))",
    '![" onerror="alert(1)](http://x/)',
    '[a](http://x/ "\\" onclick=alert(1) ")',
    '[a](http://x/"onmouseover="alert(1))',
    "<javascript:alert(1)>",
    "<http://x/\"onclick='alert(1)'>",
    '```"><script>alert(1)</script>\ncode\n```',
    '```py" onclick="alert(1)\ncode\n```',
    "```html\n<script>alert(1)</script>\n```",
    "    <script>alert(1)</script>",
    "`<script>alert(1)</script>`",
    "| <script>alert(1)</script> | b |\n|---|:-:|\n| <img src=x onerror=alert(1)> | x |",
    "# <b onclick=alert(1)>x</b>",
    "<!-- --><script>alert(1)</script>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    f"<scr{MARK}ipt>alert(1)</script>",
    "<scr\x00ipt>alert(1)</script>",
    "[x]: javascript:alert(1)\n\n[x]",
    "[![a](javascript:1)](javascript:2)",
]

ALLOWED = {
    "a": {"href", "title", "rel", "target"},
    "ol": {"start"},
    "th": {"align"},
    "td": {"align"},
    "code": {"class"},
    "div": {"class", "tabindex"},
    "pre": {"tabindex"},
    "span": {"class"},
} | {name: set() for name in "p br hr h3 h4 h5 h6 ul li blockquote em strong s table thead tbody tr".split()}


class Inspector(HTMLParser):
    """Fails on any element or attribute that can do more than look."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED, tag
        for name, value in attrs:
            assert name == "dir" or name in ALLOWED[tag], (tag, name)
            assert name != "href" or re.match(r"https?:|mailto:", str(value), re.IGNORECASE), value
            assert name != "class" or re.fullmatch(r"language-[\w+.#-]+|[a-z]{1,5}", str(value)), value
        if tag == "a":
            kept = dict(attrs)
            assert kept["rel"] == "noopener noreferrer nofollow" and kept["target"] == "_blank"

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(decl)

    def handle_pi(self, data: str) -> None:
        raise AssertionError(data)

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(data)


def inspect(markup: str) -> None:
    inspector = Inspector(convert_charrefs=True)
    inspector.feed(markup)
    inspector.close()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("around", ["{}", "- {}", "> {}", "a **{}** b", "1. {}\n\n   {}"])
def test_nothing_that_a_model_writes_can_do_more_than_look(attack: str, around: str) -> None:
    inspect(render(around.replace("{}", attack)))


@settings(deadline=None)
@given(st.text(alphabet="<>\"'/=&;:![]()`*_~#|-\\ \n\tajx1麻\x00", max_size=60))
def test_nor_anything_else(source: str) -> None:
    inspect(render(source))


def test_raw_html_is_text() -> None:
    assert render("a <b>b</b> &amp; c") == '<p dir="auto">a &lt;b&gt;b&lt;/b&gt; &amp; c</p>\n'
    assert render("<div>\n*a*") == '<p dir="auto">&lt;div&gt;<br>\n<em>a</em></p>\n'


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", ""),
        ("\n \n", ""),
        ("a **b** `c` ~~d~~", "<p>a <strong>b</strong> <code>c</code> <s>d</s></p>\n"),
        ("a line\r\nand a line\rand one", "<p>a line<br>\nand a line<br>\nand one</p>\n"),
        ("- a\n\n- b\n\n  c", "<ul>\n<li>a</li>\n<li>b\n<p>c</p>\n</li>\n</ul>\n"),
        ("3. a\n4. b", '<ol start="3">\n<li>a</li>\n<li>b</li>\n</ol>\n'),
        ("> a\n\n---", "<blockquote>\n<p>a</p>\n</blockquote>\n<hr>\n"),
        ("http://x.y is text", "<p>http://x.y is text</p>\n"),
        ("[/a](/a) [x]\n\n[x]: http://x", "<p>[/a](/a) [x]</p>\n<p>[x]: http://x</p>\n"),
        ("**注意：**请。是**粗体**的", "<p><strong>注意：</strong>请。是<strong>粗体</strong>的</p>\n"),
        ("snake_case_name 2*3*4 5 * 6 * 7", "<p>snake_case_name 2<em>3</em>4 5 * 6 * 7</p>\n"),
    ],
)
def test_what_it_makes(source: str, expected: str) -> None:
    assert render(source).replace(' dir="auto"', "") == expected


def test_links_leave_without_telling_where_from_and_pictures_are_links() -> None:
    link = '<a href="http://x/y.png" target="_blank" rel="noopener noreferrer nofollow">{}</a>'
    assert link.format("a") in render("[a](http://x/y.png)")
    assert link.format("a bird") in render("![a *bird*](http://x/y.png)")
    assert link.format("http://x/y.png") in render("![](http://x/y.png)")
    assert 'href="mailto:a@b.c"' in render("<a@b.c>")


def test_a_table_has_its_alignment_without_a_style() -> None:
    page = render("| a | b | c |\n|:--|:-:|--:|\n| 1 | 2 | 3 |")
    assert '<th align="left">a</th>\n<th align="center">b</th>\n<th align="right">c</th>' in page
    assert page.startswith('<div class="table" tabindex="0"><table dir="auto">') and "style" not in page


def test_code_is_coloured_when_its_language_is_known() -> None:
    source = 'def f(x):\n    return "<b>" + 1  # é\n'
    page = render(f"```python\n{source}```")
    assert '<span class="k">def</span> <span class="f">f</span>(x)' in page
    assert '<span class="s">"&lt;b&gt;"</span>' in page and '<span class="c"># é</span>' in page
    assert text_of(page) == source + "\n"
    assert render("```nosuch\na<b\n```") == CODE.format(' class="language-nosuch"', "a&lt;b\n")
    assert render("```\na<b\n```") == render("    a<b\n") == CODE.format("", "a&lt;b\n")
    assert "span" not in render("```python\n" + source * 200 + "```")


@pytest.mark.parametrize("language", ["python", "js", "c++", "html", "json", "bash", "diff", "sql", "yaml"])
def test_colours_change_no_character(language: str) -> None:
    code = '\n\n  a = \'x\' <b>& "1"\t# c\n+ {"k": 1.5} // $x\n\n\n麻雀 `'
    assert text_of(render(f"````{language}\n{code}\n````")) == code + "\n\n"


def test_headings_stand_below_the_page_s_and_leave_no_level_out() -> None:
    levels = re.findall(r"<h(\d)", render("### a\n\n##### b\n\n#### c\n\n## d\n\n# e\n\n- # f\n\n###### g"))
    assert levels == ["3", "4", "4", "3", "3", "3", "4"]


PIECES = st.sampled_from(
    ["- ", "1. ", "> ", "# ", "```", "~~~", "```py\n", "| ", "|-|-|", "---", "===", "**", "*", "_", "`", "[a](", ")"]
    + ["2) ", "* ", "a | b\n", "- | -\n", "|-|\n", "10. ", "<b>", "\r", "\u3000", "\x0c", "\xa0", "***", "````"]
    + ["a", "b c", "麻", " ", "  ", "    ", "\t", "\n", "\n", "\n\n", "\\", "<", "!", "[x]: http://a", "  \n", "\r\n"]
)
SOURCES = st.lists(PIECES, max_size=40).map("".join)


@settings(deadline=None)
@given(SOURCES)
def test_a_block_is_the_same_alone_and_among_others(source: str) -> None:
    source = tidy(source) + "\n"
    lines = [f"{line}\n" for line in source.split("\n")[:-1]]  # splitlines() would cut at \x0c, too
    parts = [blocks("".join(lines[block.start : block.end])) for block in blocks(source)]
    assert all(len(part) == 1 for part in parts)
    outline: list[int] = []
    assert "".join(html(block, outline) for part in parts for block in part) == render(source)


@pytest.mark.parametrize(
    "loop", ["[", "![", "[a](", "*a ", "**a", "`a``", "<a ", "&a", "> ", "- ", "- a\n", "|a", "\\", "1. "]
)
def test_a_model_in_a_loop_costs_no_more_than_seconds(loop: str) -> None:
    began = time.thread_time()
    inspect(render(loop * (40_000 // len(loop))))
    assert time.thread_time() - began < 3, "up to 0.5 s where this was written"


def test_what_was_rendered_is_kept_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.markdown.CACHE_CHARS", 5_000)
    first = "first " * 100
    page = render(first)
    assert render(first) is page
    for number in range(10):
        render(f"{number} " * 300)
    assert render(first) is not page and render(first) == page
