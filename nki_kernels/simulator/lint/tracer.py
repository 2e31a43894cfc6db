"""The front end of NKI 0.7: all of Python, but what exists only at run time has no value in it.

Where a name can be followed to `scalar_load`, `register_alloc` or the index of a run-time loop, its
use in control flow is refused before the run, in branches that are not taken too. The values
themselves refuse the rest (`scalars`).
"""

import ast
from collections.abc import Iterator
from typing import Any

from nki_kernels.simulator.lint.sources import Finding, Source

MAKES = {"scalar_load", "register_alloc"}
LOOPS = {"fori_loop", "while_loop"}
NEEDS_A_VALUE = {"bool", "float", "int", "range"}


def findings(source: Source) -> Iterator[Finding]:
    """Run-time values where Python needs to know one."""
    if source.node is None or isinstance(source.thing, type):
        return
    names = _run_time_names(source.node)
    for node in ast.walk(source.node):
        for place, value in _needed(node):
            if _is_run_time(value, names):
                expected = f"a compile-time value in {place}"
                got = f"the run-time value {ast.unparse(value)}"
                yield source.finding("tensor-value", expected, got, value)


def _called(node: Any) -> str:
    """The last part of a called name: fori_loop of nl.fori_loop(...)."""
    function = node.func if isinstance(node, ast.Call) else None
    return str(getattr(function, "attr", getattr(function, "id", "")))


def _run_time_names(root: ast.AST) -> set[str]:
    bodies = {
        argument.id
        for node in ast.walk(root)
        if _called(node) in LOOPS and isinstance(node, ast.Call)
        for argument in [*node.args, *(word.value for word in node.keywords)]
        if isinstance(argument, ast.Name)
    }
    names: set[str] = set()
    bound: set[ast.AST] = set()  # where a run-time value gets its name
    for node in ast.walk(root):  # outer statements come before inner ones
        if isinstance(node, ast.FunctionDef) and node.name in bodies and node.args.args:
            bound.add(node.args.args[0])
            names.add(node.args.args[0].arg)
        elif isinstance(node, ast.Assign) and _is_run_time(node.value, names):
            targets = [target for target in node.targets if isinstance(target, ast.Name)]
            bound.update(targets)
            names |= {target.id for target in targets}
    for node in ast.walk(root):  # a name with a second meaning is left to the run
        if node not in bound:
            if isinstance(node, ast.arg):
                names.discard(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.discard(node.id)
    return names


def _is_run_time(node: ast.AST, names: set[str]) -> bool:
    match node:
        case ast.Name(id=name):
            return name in names
        case ast.Call():
            return _called(node) in MAKES
        case ast.BinOp(left=left, right=right):
            return _is_run_time(left, names) or _is_run_time(right, names)
        case ast.UnaryOp(operand=operand):
            return _is_run_time(operand, names)
        case ast.Compare(left=left, comparators=others):
            known = any(isinstance(other, ast.Constant) and other.value is None for other in others)
            return not known and any(_is_run_time(part, names) for part in (left, *others))
        case ast.BoolOp(values=values):
            return any(_is_run_time(value, names) for value in values)
        case _:
            return False


def _needed(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The expressions of a node whose value Python has to know, and what for."""
    match node:
        case ast.If(test=test) | ast.IfExp(test=test):
            yield "if", test
        case ast.While(test=test):
            yield "while", test
        case ast.Assert(test=test):
            yield "assert", test
        case ast.For(iter=over):
            yield "for", over
        case ast.Call(func=ast.Name(id=name), args=args) if name in NEEDS_A_VALUE:
            yield from ((f"{name}()", argument) for argument in args)
        case _:
            pass
