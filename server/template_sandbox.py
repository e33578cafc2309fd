"""A chat template is a program by whoever made the model file: the sandbox that it runs in, here or as a child process.

The sandbox keeps it from Python. It does not keep it from `{% for a in range(99999) %}{% for b in range(99999) %}` or
from text that doubles 60 times, so only tame templates run in the server itself: those whose every piece of work is
constant or shows in the length of what they write, which has a limit. Qwen2.5's is tame. All others run in a child
(python -m server.template_sandbox CPU_S PARSE_S), where the system limits memory and time: 20 MB, and a millisecond
a conversation.
The child takes a JSON value a line, the template first, then {"values": …, "n_most": …}; and answers with a line each.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TEMPLATE = 100_000
"""Characters. The longest known ones have 20,000, Qwen2.5's 2,500."""
MAX_TAME, MAX_LOOPS = 8_000, 16
MAX_TERMS = 16
"""Texts put together in one expression of a tame template."""

CPU_S, PARSE_S = 2, 10
"""Seconds of a processor for one rendering, with one more for each million characters of messages; and for parsing."""
MEMORY_BYTES = 256 << 20
"""What the child may take on top of what it has before it sees a template."""


class TooLong(Exception):
    """It writes more than it may."""


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(value: Any, indent: int | None = None) -> str:
    """Jinja's own filter escapes for HTML, which a model has never seen."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return made


def rendered(template: Template, values: Mapping[str, Any], n_most: int) -> str:
    """Raises TooLong above n_most characters, and whatever the template raises."""
    made, n = [], 0
    for piece in template.generate(**values):
        n += len(piece)
        if n > n_most:
            raise TooLong
        made.append(piece)
    return "".join(made)


def is_tame(template: str) -> bool:
    """Whether it may run in the server: see above. False too for what can't be parsed."""
    if len(template) > MAX_TAME:
        return False
    try:
        return _Tame(environment().parse(template)).holds
    except Exception:  # TemplateError, RecursionError, ValueError of a number with 5,000 digits: the child will say it
        return False


def names(template: str) -> frozenset[str]:
    """What it asks for by name, like "messages" and "tools"; nothing of what can't be parsed. Runs none of it."""
    try:
        return frozenset(node.name for node in environment().parse(template).find_all(nodes.Name))
    except Exception:  # as in is_tame
        return frozenset()


class _Tame:
    """Looks at a parsed template. What is not known to be harmless is not tame."""

    def __init__(self, tree: nodes.Template) -> None:
        targets = [node.target for node in tree.find_all(nodes.Assign)]
        self._assigned = {target.name for target in targets if isinstance(target, nodes.Name)}
        self.holds = len(list(tree.find_all(nodes.For))) <= MAX_LOOPS and self._all(tree.body, None)

    def _all(self, body: list[nodes.Node], loop: str | None) -> bool:
        return all(self._statement(node, loop) for node in body)

    def _statement(self, node: nodes.Node, loop: str | None) -> bool:
        """loop: what the innermost loop calls its element."""
        if isinstance(node, nodes.Output):
            return all(self._output(part) for part in node.nodes)
        if isinstance(node, nodes.If):
            return _condition(node.test) and self._all([*node.body, *node.elif_, *node.else_], loop)
        if isinstance(node, nodes.Assign):
            return isinstance(node.target, nodes.Name) and (_is_path(node.node) or _condition(node.node))
        if isinstance(node, nodes.For):
            return self._loop(node, loop)
        return False

    def _loop(self, node: nodes.For, loop: str | None) -> bool:
        """A loop in a loop goes over a part of that one's element: all together have as many turns as there is text."""
        if node.recursive or node.test is not None or not isinstance(node.target, nodes.Name):
            return False
        root = _root(node.iter)
        if root is None or (loop is not None and (root != loop or root in self._assigned)):
            return False
        return self._all([*node.body, *node.else_], node.target.name)

    def _output(self, node: nodes.Node) -> bool:
        """Texts and what messages hold, put together: the work shows in the length of what is written."""
        if isinstance(node, nodes.TemplateData):
            return True
        if isinstance(node, nodes.CondExpr):
            return _condition(node.test) and all(self._output(part) for part in (node.expr1, node.expr2) if part)
        return len(terms := _terms(node)) <= MAX_TERMS and all(_is_text(term) for term in terms)


def _terms(node: nodes.Node | None) -> list[nodes.Node | None]:
    if isinstance(node, nodes.Add):
        return _terms(node.left) + _terms(node.right)
    if isinstance(node, nodes.Concat):
        return [term for part in node.nodes for term in _terms(part)]
    return [node]


def _is_text(node: nodes.Node | None) -> bool:
    if isinstance(node, nodes.Filter):
        return node.name == "tojson" and not (node.args or node.kwargs or node.dyn_args) and _is_path(node.node)
    return isinstance(node, nodes.Const) or _is_path(node)


def _is_path(node: nodes.Node | None) -> bool:
    """Something in the messages, like messages[loop.index0 - 1].role."""
    return _root(node) is not None


def _root(node: nodes.Node | None) -> str | None:
    """The name that a path begins with."""
    while isinstance(node, (nodes.Getattr, nodes.Getitem)):
        if isinstance(node, nodes.Getitem) and not _is_index(node.arg):
            return None
        node = node.node
    return node.name if isinstance(node, nodes.Name) else None


def _is_index(node: nodes.Node) -> bool:
    if isinstance(node, (nodes.Add, nodes.Sub)):
        return _is_index(node.left) and _is_index(node.right)
    return isinstance(node, nodes.Const) or (isinstance(node, nodes.Getattr) and _root(node) == "loop")


_TESTS = {"defined", "undefined", "none", "string", "mapping", "sequence", "iterable", "boolean", "number"}


def _condition(node: nodes.Node | None) -> bool:
    """Something that is decided at once, however long the messages are."""
    if isinstance(node, nodes.Not):
        return _condition(node.node)
    if isinstance(node, (nodes.And, nodes.Or)):
        return _condition(node.left) and _condition(node.right)
    if isinstance(node, nodes.Compare):
        others = [operand.expr for operand in node.ops]
        is_quick = _is_index(node.expr) or all(_is_index(other) for other in others)
        known = {"eq", "ne", "lt", "lteq", "gt", "gteq"}
        sides = all(_is_path(side) or _is_index(side) for side in [node.expr, *others])
        return is_quick and sides and all(operand.op in known for operand in node.ops)
    if isinstance(node, nodes.Test):
        return node.name in _TESTS and not node.args and _is_path(node.node)
    return isinstance(node, nodes.Const) or _is_path(node)


def _confine() -> None:
    """From here on: no file is written, no core dumped, no more memory taken than a rendering needs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's: it ends the child by closing its input
    for kind, n_most in (("CORE", 0), ("FSIZE", 0), ("AS", _memory_bytes() + MEMORY_BYTES)):
        with contextlib.suppress(ValueError, OSError, AttributeError):  # a system without it has the others
            resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (n_most, n_most))


def _memory_bytes() -> int:
    """Of address space that this process has taken."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 1 << 30


def _allow(seconds: int) -> None:
    """So much processor time from now on; then the system ends this process."""
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + seconds, hard))


def _answer(work: Callable[[], str]) -> None:
    """A line for what `work` returns or raises."""
    try:
        said = {"text": work()}
    except TooLong:
        said = {"limit": "writes more text than a conversation has"}
    except (MemoryError, RecursionError):
        said = {"limit": "takes more memory than it may"}
    except Exception as error:
        said = {"error": f"{error}"[:1000] or type(error).__name__}
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def main() -> None:
    """The child. It ends with its input."""
    cpu_s, parse_s = map(int, sys.argv[1:])
    _confine()
    template: Template | None = None

    def work() -> str:
        nonlocal template
        given = json.loads(line)
        if template is None:
            template = environment().from_string(given)
            return ""
        return rendered(template, given["values"], given["n_most"])

    for line in sys.stdin:
        _allow(cpu_s + len(line) // 1_000_000 if template else parse_s)
        _answer(work)


if __name__ == "__main__":
    main()
