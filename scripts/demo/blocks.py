"""The Markdown answers: lists, tables and code, by topic, in English and Chinese."""

from __future__ import annotations

from .phrases import Lang


def _list(intro: str, items: str) -> str:
    return f"{intro}\n\n" + "\n".join(f"- {item}" for item in items.split())


def _table(intro: str, *rows: str) -> str:
    header, *body = ["| " + " | ".join(row.split()) + " |" for row in rows]
    rule = "| " + " | ".join(["---"] * len(rows[0].split())) + " |"
    return f"{intro}\n\n" + "\n".join([header, rule, *body])


def _code(intro: str, source: str) -> str:
    return f"{intro}\n\n```python\n{source}\n```"


# Per language and kind: requests without a topic (the first topic answers), requests with one, topic -> answer.
Block = tuple[tuple[str, ...], tuple[str, ...], dict[str, str]]
BLOCKS: dict[Lang, dict[str, Block]] = {
    "en": {
        "list": (
            ("show me a list", "give me a list", "make a list", "write a list", "a list please", "can you show a list"),
            ("show me a list of {}", "give me a list of {}", "make a list of {}", "list some {}"),
            {
                "fruits": _list("Here is a list:", "apple pear plum"),
                "birds": _list("Here is a list:", "sparrow robin swan owl"),
                "planets": _list("Here is a list:", "Mercury Venus Earth Mars"),
            },
        ),
        "table": (
            ("make a table", "show me a table", "give me a table", "write a table", "a table please", "draw a table"),
            ("make a table of {}", "show me a table of {}", "give me a table of {}"),
            {
                "fruits": _table(
                    "Here is a table:", "Fruit Colour Price", "apple red 2", "pear green 3", "plum blue 4"
                ),
                "birds": _table("Here is a table:", "Bird Size", "sparrow small", "robin small", "swan large"),
                "planets": _table("Here is a table:", "Planet Moons", "Earth 1", "Mars 2", "Venus 0"),
            },
        ),
        "code": (
            ("show me code", "show me some code", "write some code", "write code", "give me code", "write a function"),
            ("write a function that {}", "show me code that {}", "show me a function that {}"),
            {
                "adds": _code("Here is some code:", "def add(a, b):\n    return a + b"),
                "doubles": _code("Here is some code:", "def double(x):\n    return 2 * x"),
                "greets": _code("Here is some code:", 'def greet(name):\n    return "Hello, " + name'),
            },
        ),
    },
    "zh": {
        "list": (
            ("给我一个列表", "写一个列表", "做一个列表", "请给我一个列表", "列一个列表", "请写一个列表"),
            ("给我一个{}列表", "写一个{}列表", "请列出一些{}"),
            {"水果": _list("这是一个列表：", "苹果 梨 桃子"), "鸟": _list("这是一个列表：", "麻雀 天鹅 燕子")},
        ),
        "table": (
            ("做一个表格", "给我一个表格", "写一个表格", "请做一个表格", "画一个表格", "请给我一个表格"),
            ("做一个{}表格", "给我一个{}表格", "写一个{}的表格"),
            {
                "水果": _table("这是一个表格：", "水果 颜色 价格", "苹果 红色 2", "梨 绿色 3", "桃子 黄色 4"),
                "鸟": _table("这是一个表格：", "鸟 大小", "麻雀 小", "燕子 小", "天鹅 大"),
            },
        ),
        "code": (
            ("写一段代码", "给我一段代码", "写代码", "请写一段代码", "写一个函数", "给我看代码"),
            ("写一个{}的函数", "写一段{}的代码"),
            {
                "加法": _code("这是一段代码：", "def add(a, b):\n    return a + b"),
                "问好": _code("这是一段代码：", 'def greet(name):\n    return "你好，" + name'),
            },
        ),
    },
}
