"""The front end of NKI 0.3-0.6: a subset of Python.

Every finding is a strict rule: the vendor's own simulator runs a kernel as ordinary Python.
"""

import ast
from collections.abc import Iterator
from enum import Enum

from nki_kernels.simulator.lint.sources import Finding, Source

REJECTED: dict[type[ast.AST], tuple[str, str, str]] = {  # rule, expected, got
    ast.Lambda: ("python-lambda", "a function under def", "a lambda"),
    ast.ListComp: ("python-comprehension", "a for loop", "a list comprehension"),
    ast.SetComp: ("python-comprehension", "a for loop", "a set comprehension"),
    ast.DictComp: ("python-comprehension", "a for loop", "a dict comprehension"),
    ast.GeneratorExp: ("python-generator", "a for loop", "a generator expression"),
    ast.Yield: ("python-generator", "a function that returns", "yield"),
    ast.YieldFrom: ("python-generator", "a function that returns", "yield from"),
    ast.Await: ("python-generator", "a function that returns", "await"),
    ast.AsyncFunctionDef: ("python-generator", "a function under def", "async def"),
    ast.Try: ("python-try", "an if over compile-time values, or assert", "try"),
    ast.TryStar: ("python-try", "an if over compile-time values, or assert", "try"),
    ast.Global: ("python-global", "arguments and results", "global"),
    ast.Nonlocal: ("python-global", "arguments and results", "nonlocal"),
    ast.Set: ("python-value", "a tuple, a list or a dict", "a set"),
}
REFLECTION = {"callable", "delattr", "dir", "eval", "exec", "getattr", "globals", "hasattr"}
REFLECTION |= {"issubclass", "locals", "setattr", "type", "vars"}


def findings(source: Source) -> Iterator[Finding]:
    """What the parser rejects in one function or class of a kernel."""
    if isinstance(source.thing, type):
        yield from _of_class(source, source.thing)
        return
    if source.node is None:
        expected = "a kernel whose source file can be read"
        yield source.finding("python-source", expected, f"{source.thing.__name__} without one")
        return
    for node in ast.walk(source.node):
        if type(node) in REJECTED:
            yield source.finding(*REJECTED[type(node)], node)
        elif isinstance(node, ast.arguments):
            yield from _of_parameters(source, node)
        else:
            yield from _of_expression(source, node)


def _of_parameters(source: Source, node: ast.arguments) -> Iterator[Finding]:
    for keyword in node.kwonlyargs:
        got = f"{keyword.arg} after *"
        yield source.finding("python-keyword-only", "an ordinary parameter", got, keyword)
    for stars, rest in (("*", node.vararg), ("**", node.kwarg)):
        if rest is not None:
            got = f"{stars}{rest.arg}"
            yield source.finding("python-star-args", "named parameters", got, rest)


def _of_expression(source: Source, node: ast.AST) -> Iterator[Finding]:
    match node:
        case ast.Compare(ops=ops) if any(isinstance(op, ast.Is | ast.IsNot) for op in ops):
            got = ast.unparse(node)
            yield source.finding("python-is", "== or != (x == None)", got, node)
        case ast.Call(func=ast.Name(id=name)) if name in REFLECTION:
            yield source.finding("python-reflection", "isinstance, or none", f"{name}()", node)
        case ast.Call(args=args) if any(isinstance(value, ast.Starred) for value in args):
            yield source.finding("python-star-args", "arguments one by one", "f(*...)", node)
        case ast.Call(keywords=words) if any(word.arg is None for word in words):
            yield source.finding("python-star-args", "arguments one by one", "f(**...)", node)
        case ast.Constant(value=complex() | bytes() as value):
            expected = "None, bool, int, float or str"
            yield source.finding("python-value", expected, repr(value), node)
        case ast.Dict(keys=keys):
            for key in keys:
                if isinstance(key, ast.Constant) and not isinstance(key.value, str):
                    yield source.finding("python-value", "str keys", repr(key.value), key)
        case _:
            pass


def _of_class(source: Source, kind: type) -> Iterator[Finding]:
    """Classes of the parser: direct children of NKIObject, and simple enumerations."""
    if issubclass(kind, Enum | BaseException):
        return
    bases = ", ".join(base.__name__ for base in kind.__bases__)
    if bases != "NKIObject":
        expected = "a class whose only base is nl.NKIObject"
        yield source.finding("python-class", expected, f"{kind.__name__}({bases})")
