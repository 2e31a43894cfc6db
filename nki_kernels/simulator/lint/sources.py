"""Which Python belongs to a kernel: its own and that of the functions and classes it names."""

import ast
import functools
import importlib.util
import linecache
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

from nki_kernels.simulator.errors import Line

OURS = __name__.removesuffix(".lint.sources")
FOREIGN = sys.stdlib_module_names - {"__main__"} | {"jax", "ml_dtypes", "nki", "numpy", "torch"}


@dataclass(frozen=True)
class Finding:
    """A rule that the source breaks, and where."""

    rule: str
    expected: str
    got: str
    line: Line


@dataclass(frozen=True)
class Source:
    """A function (its node, None where there is no source) or a class of a kernel."""

    thing: Any
    node: ast.AST | None
    file: str
    names: tuple[Any, ...] = ()  # what the node's names and dotted names stand for

    def finding(self, rule: str, expected: str, got: str, at: Any = None) -> Finding:
        """A finding at a node, else at the definition."""
        code = getattr(self.thing, "__code__", None)
        line: int = getattr(at or self.node, "lineno", getattr(code, "co_firstlineno", 0))
        return Finding(rule, expected, got, (self.file, line))


def plain(thing: Any) -> Any:
    """The function in a kernel, a partial, a method or a property."""
    while True:
        if isinstance(thing, functools.partial):
            thing = thing.func
        elif isinstance(thing, staticmethod | classmethod | MethodType):
            thing = thing.__func__
        elif isinstance(thing, property):
            thing = thing.fget
        elif not isinstance(thing, FunctionType | type) and "__wrapped__" in _members(thing):
            thing = thing.__wrapped__
        else:
            return thing


def _members(thing: Any) -> dict[str, Any]:
    found = getattr(type(thing), "__dictoffset__", 0) and object.__getattribute__(thing, "__dict__")
    return found or {}


def reached(kernel: FunctionType, arguments: Iterable[Any] = ()) -> Iterator[Source]:
    """The kernel and what it reaches by name, each once."""
    queue: list[Any] = [kernel, *map(type, arguments)]
    seen: set[int] = set()
    while queue:
        thing = queue.pop(0)
        if isinstance(thing, (list, tuple)):
            queue += thing
        elif isinstance(thing, dict):
            queue += thing.values()
        thing = plain(thing)
        if not isinstance(thing, (FunctionType, type)) or id(thing) in seen or _foreign(thing):
            continue
        seen.add(id(thing))
        source = _class(thing) if isinstance(thing, type) else _function(thing)
        if source.node is not None or thing is kernel:
            yield source
        queue += source.names


def _foreign(thing: Any) -> bool:
    written = getattr(thing, "__globals__", None) or {"__name__": thing.__module__}
    module = str(written.get("__name__", ""))
    inside = module == OURS or module.startswith(f"{OURS}.")
    return inside or module.split(".")[0] in FOREIGN


def _class(thing: type) -> Source:
    file = getattr(sys.modules.get(thing.__module__), "__file__", None) or "<unknown>"
    members = tuple(plain(value) for value in vars(thing).values())
    return Source(thing, _nodes(file).get(thing.__name__), file, (*thing.__bases__, *members))


def _function(thing: FunctionType) -> Source:
    code = thing.__code__
    node = _nodes(code.co_filename).get((code.co_name, code.co_firstlineno))
    names = tuple(_named(node, thing)) if node is not None else ()
    return Source(thing, node, code.co_filename, names)


def _nodes(file: str) -> dict[Any, ast.AST]:
    linecache.checkcache(file)
    return _parsed("".join(linecache.getlines(file)))


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> dict[Any, ast.AST]:
    """Functions by name and first line (of the decorators), classes by name."""
    found: dict[Any, ast.AST] = {}
    try:
        tree = ast.parse(text)
    except SyntaxError:  # the file has changed under us
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name, (*node.decorator_list, node)[0].lineno] = node
        elif isinstance(node, ast.Lambda):
            found["<lambda>", node.lineno] = node
        elif isinstance(node, ast.ClassDef):
            found[node.name] = node
    return found


def _named(node: ast.AST, function: FunctionType) -> Iterator[Any]:
    """What the names, dotted names and imports inside a function stand for, if already known."""
    code = function.__code__
    closure = zip(code.co_freevars, function.__closure__ or (), strict=True)
    scope = dict(function.__globals__)
    scope |= {name: cell.cell_contents for name, cell in closure if _filled(cell)}
    for name in (*code.co_varnames, *code.co_cellvars):
        scope.pop(name, None)

    def value(part: ast.AST) -> Any:
        if isinstance(part, ast.Name):
            return scope.get(part.id)
        if isinstance(part, ast.Attribute):
            owner = value(part.value)
            return vars(owner).get(part.attr) if isinstance(owner, (ModuleType, type)) else None
        return None

    for part in ast.walk(node):
        if isinstance(part, ast.ImportFrom):
            dotted = "." * part.level + (part.module or "")
            package = function.__globals__.get("__package__")
            module = sys.modules.get(importlib.util.resolve_name(dotted, package))
            yield from (vars(module).get(alias.name) for alias in part.names if module)
        else:
            yield value(part)


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
