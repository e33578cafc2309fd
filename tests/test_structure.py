"""The shape of the code, held: imports go one way, native code has one door, files and functions stay small."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = [
    ["scripts"],
    ["server.serving"],
    ["server.stopping"],
    ["server.loading", "server.guard", "server.announce", "server.connections", "server.unread"],
    ["server.app"],
    ["server.api", "server.pages", "server.metrics"],
    ["server.api.endpoints"],
    [
        "server.api.chat",
        "server.api.completions",
        "server.api.embeddings",
        "server.api.llama_server",
        "server.api.models",
        "server.api.native",
        "server.api.openapi",
        "server.api.responses",
    ],
    ["server.api.ahead"],
    ["server.api.answering", "server.api.request", "server.api.response_request"],
    ["server.api.choice", "server.api.messages", "server.api.tools"],
    ["server.api.parameters", "server.api.prompts", "server.api.shapes", "server.api.tool_splitter"],
    ["server.api.table"],
    ["server.api.report"],
    ["server.assets", "server.plain"],
    ["server.transfers"],
    ["server.answer_events", "server.asking", "server.page"],
    ["server.lists"],
    ["server.posts", "server.clients"],
    ["server.session"],
    ["server.state", "server.api.errors", "server.templating"],
    ["server.observe", "server.answers"],
    ["server.runs"],
    ["server.drafts"],
    ["server.prompts"],
    ["server.chat", "server.store", "server.streams", "server.body", "server.i18n", "server.security"],
    ["server.shelves", "server.imports", "server.tool_text", "server.chat_template", "server.cors"],
    ["server.places", "server.access", "server.owners"],
    ["server.conversations"],
    ["server.branches"],
    ["server.rows", "server.migrations"],
    ["server.trees", "server.portable"],
    ["server.search", "server.records"],
    ["server.answer_frames"],
    ["server.live", "server.sse"],
    ["server.markdown"],
    ["server.highlight", "server.preferences"],
    ["server.vetting"],
    ["server.engine.trial"],
    ["server.engine.loader"],
    ["server.engine.engine"],
    ["server.engine.desk"],
    [
        "server.engine.request",
        "server.engine.forecast",
        "server.engine.tune",
        "server.engine.rest",
        "server.engine.overview",
    ],
    ["server.engine.llama", "server.engine.quantizer", "server.engine.snapshots"],
    ["server.engine.archive"],
    ["server.engine.sampler", "server.engine.weights"],
    ["server.engine.vocab"],
    ["server.engine.scheduler"],
    ["server.engine.erasure"],
    ["server.engine.prefix", "server.engine.chunks"],
    ["server.engine.constraint", "server.engine.grammar"],
    ["server.engine.pattern", "server.engine.schemas"],
    ["server.engine.automaton", "server.engine.beginnings", "server.engine.scores", "server.engine.stats"],
    ["server.engine.sequence", "server.engine.table", "server.gguf_copy"],
    [
        "server.engine.sampling",
        "server.engine.text",
        "server.engine.gbnf",
        "server.engine.pace",
        "server.engine.inbox",
        "server.engine.info",
        "server.engine.admission",
        "server.engine.lookup",
        "server.engine.topk",
        "server.settings",
        "server.gguf_file",
        "server.fields",
        "server.logs",
        "server.gates",
        "server.tries",
        "server.template_sandbox",
    ],
    ["server.errors"],
]
"""Top to bottom. A module imports from lower layers only; two of one layer do not know each other."""

NATIVE = {f"server.engine.{name}" for name in ("llama", "weights", "sampler", "vocab", "quantizer")}
PURE = [
    "erasure",
    "sampling",
    "pace",
    "lookup",
    "topk",
    "gbnf",
    "automaton",
    "constraint",
    "grammar",
    "pattern",
    "schemas",
    "scores",
    "stats",
]
PURE += ["pattern", "schemas", "scores", "stats", "sequence", "text", "prefix", "chunks", "scheduler"]
NOT_IN_ENGINE = {"starlette", "asyncio", "jinja2", "sqlite3", "uvicorn"}
NOT_IN_PURE = NOT_IN_ENGINE | {"ctypes", "threading", "time", "datetime", "llama_cpp"}


def sources(folder: str) -> Iterator[tuple[str, Path, ast.Module]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, path, ast.parse(path.read_text())


def imported(tree: ast.AST) -> set[str]:
    """Modules that the code names, `from server import api` as server.api."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "server" else {node.module}
            )
    return names


def layer(module: str) -> int | None:
    """None: a package's own __init__, which imports nothing."""
    return next((at for at, names in enumerate(LAYERS) for name in names if module == name), None)


def test_every_module_has_a_layer() -> None:
    missing = [
        name for name, _, _ in sources("server") if name not in ("server", "server.engine") and layer(name) is None
    ]
    assert not missing, f"put {missing} into LAYERS, as low as they can stand"


def test_imports_go_one_way() -> None:
    wrong = []
    for name, _, tree in sources("server"):
        for other in imported(tree):
            above, below = layer(name), layer(other)
            if other.startswith(("server", "scripts")) and above is not None and below is not None and below <= above:
                wrong.append(f"{name} -> {other}")
    assert not wrong


@pytest.mark.parametrize("folder", ["server", "scripts"])
def test_llama_cpp_has_one_door(folder: str) -> None:
    doors = {name for name, _, tree in sources(folder) if any(m.split(".")[0] == "llama_cpp" for m in imported(tree))}
    assert doors <= NATIVE | {"scripts.bench_raw", "scripts.demo.measure"}


def test_the_engine_knows_no_web_and_its_pure_parts_no_machine() -> None:
    for name, _, tree in sources("server/engine"):
        forbidden = NOT_IN_PURE if name.rpartition(".")[2] in PURE else NOT_IN_ENGINE
        used = {module.split(".")[0] for module in imported(tree)}
        assert not used & forbidden, f"{name} imports {used & forbidden}"


@pytest.mark.parametrize("folder", ["server", "scripts"])
def test_no_import_inside_a_function_and_no_utils(folder: str) -> None:
    for name, path, tree in sources(folder):
        assert "utils" not in path.stem
        for function in functions(tree):
            inside = [node for node in ast.walk(function) if isinstance(node, (ast.Import, ast.ImportFrom))]
            assert not inside, f"{name}.{function.name} imports inside"


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or 0) - function.lineno + 1


@pytest.mark.parametrize("folder", ["server", "scripts"])
def test_the_size_budget(folder: str) -> None:
    lengths: list[int] = []
    for name, path, tree in sources(folder):
        n_lines = path.read_text().count("\n")
        limit = 330 if name in NATIVE else 300
        assert n_lines <= limit, f"{name} has {n_lines} lines, the limit is {limit}"
        for function in functions(tree):
            assert length(function) <= 60, f"{name}.{function.name} has {length(function)} lines, the limit is 60"
            lengths.append(length(function))
    lengths.sort()
    median, ninth = statistics.median(lengths), lengths[len(lengths) * 9 // 10]
    assert median <= 8 and ninth <= 30, f"{folder}: the median is {median}, nine in ten are up to {ninth} lines"


def test_the_main_loop_is_visible() -> None:
    tree = ast.parse((ROOT / "server/engine/engine.py").read_text())
    step = next(function for function in functions(tree) if function.name == "step")
    assert length(step) <= 15


def test_no_two_test_files_have_one_name() -> None:
    """pytest would find neither in a run of all, and both alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
