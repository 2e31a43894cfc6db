"""What the simulator raises, and where in the user's source.

NkiError
  NkiValidationError   (ValueError)           a rule of `rules.RULES` was broken
    NkiNameError       (AttributeError)       a name that this version of NKI does not have
    NkiTypeError       (TypeError)            a run-time value where Python needs to know it
  NkiNotSimulated      (NotImplementedError)  exists on the device, not here
  NkiInstallError      (ImportError)          `install()` would shadow a real installation
NkiWarning             (UserWarning)          a strict rule was broken in a session that is not
"""

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

PACKAGE = str(Path(__file__).parent)
Line = tuple[str, int]  # file, line


class NkiError(Exception):
    """Base of everything that the simulator raises on purpose."""


class NkiValidationError(NkiError, ValueError):
    """An instruction or a tensor breaks a rule.

    Attributes: `op`, `argument`, `expected`, `got`, `rule` (its name in the table) and `line`
    ("file:line" of the kernel).
    """

    def __init__(
        self, op: str, argument: str, expected: str, got: str, rule: str, line: str
    ) -> None:
        self.op, self.argument, self.expected = op, argument, expected
        self.got, self.rule, self.line = got, rule, line
        what = f"{op}({argument})" if argument else op
        super().__init__(f"{what}: expected {expected}, got {got} [{rule}] at {line}")


class NkiNameError(NkiValidationError, AttributeError):
    """A name that this version of NKI does not have."""


class NkiTypeError(NkiValidationError, TypeError):
    """A value that exists only at run time was needed while the kernel is built."""


class NkiNotSimulated(NkiError, NotImplementedError):
    """The device has it; this simulator does not."""


class NkiInstallError(NkiError, ImportError):
    """A real `nki` is installed and would be shadowed."""


class NkiWarning(UserWarning):
    """What only `session(strict=True)` refuses."""


def kernel_line() -> Line:
    """The innermost source line outside the simulator."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(PACKAGE) and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def text(line: Line) -> str:
    """The line as a person writes it: file:line."""
    return f"{line[0]}:{line[1]}"


def without_simulator_frames(trace: TracebackType | None) -> TracebackType | None:
    """The same traceback without the frames of this package."""
    if trace is None:
        return None
    rest = without_simulator_frames(trace.tb_next)
    if trace.tb_frame.f_code.co_filename.startswith(PACKAGE):
        return rest
    return TracebackType(rest, trace.tb_frame, trace.tb_lasti, trace.tb_lineno)


def entry(launch: Callable[..., tuple[Any, Exception | None]], line: Line, name: str) -> Any:
    """`launch` as a function that raises the error it hands back.

    A frame of the function that raises is always part of a traceback; this one is compiled as if it
    stood at `line`, the kernel's definition, so that a traceback shows the caller, then the kernel.
    """
    source = """
def entry(*args, **kwargs):
    __tracebackhide__ = True
    result, error = launch(*args, **kwargs)
    if error is not None:
        raise error
    return result
"""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt | ast.expr | ast.arg):
            node.lineno = node.end_lineno = line[1]
            node.col_offset = node.end_col_offset = 0
    members: dict[str, Any] = {"launch": launch}
    exec(compile(tree, line[0], "exec"), members)
    made = members["entry"]
    made.__code__ = made.__code__.replace(co_name=name, co_qualname=name)
    return made
