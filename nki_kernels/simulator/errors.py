"""What the simulator raises, and where in the user's source.

NkiError
  NkiValidationError   (ValueError)           a rule of `rules.RULES` was broken
    NkiNameError       (AttributeError)       a name that this version of NKI does not have
  NkiNotSimulated      (NotImplementedError)  exists on the device, not here
  NkiInstallError      (ImportError)          `install()` would shadow a real installation
NkiWarning             (UserWarning)          a strict rule was broken in a session that is not
"""

import sys
from pathlib import Path
from types import TracebackType

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
