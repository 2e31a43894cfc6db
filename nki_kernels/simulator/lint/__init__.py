"""The source lint: which Python a front end accepts, before a kernel runs.

`parser` (NKI 0.3-0.6) compiles a subset of Python; `tracer` (0.7) runs all of it, but has no value
for what exists only at run time. Both look at the kernel and at every function, method and module
function that it calls.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType
from typing import Any

from nki_kernels.simulator.context import Session
from nki_kernels.simulator.lint import parser, tracer
from nki_kernels.simulator.lint.sources import Finding, Source, plain, reached

PROFILES = {"parser": parser.findings, "tracer": tracer.findings}


def findings(
    function: Callable[..., Any], session: Session, arguments: Iterable[Any] = ()
) -> Iterator[Finding]:
    """What the session's front end objects to in a kernel and in what it calls.

    Args:
        arguments: values given to the kernel; the classes of those that are objects are read too.
    """
    kernel = plain(function)
    if not isinstance(kernel, FunctionType):
        return
    for source in reached(kernel, arguments):
        if session.nki >= "0.4":
            yield from old_compiler(source)
        yield from PROFILES[session.frontend](source)


def old_compiler(source: Source) -> Iterator[Finding]:
    """Imports of `neuronxcc` inside a kernel: an error of the compiler from 0.4 on."""
    for node in ast.walk(source.node) if source.node is not None else ():
        match node:
            case ast.Import(names=[ast.alias(name=name), *_]) | ast.ImportFrom(module=str(name)):
                if name.split(".")[0] == "neuronxcc":
                    yield source.finding("old-compiler", "nki, nki.isa ...", name, node)
            case _:
                pass
