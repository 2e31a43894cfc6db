"""A row of the op table against its expectation."""

import numpy as np

from nki_kernels.simulator import language as nl
from tests.nki.cases.base import Case
from tests.nki.harness import In, run


def check(of: Case) -> None:
    """Run the row; floats within the rounding of their dtype, integers exactly, each output."""
    found = run(of.inputs, of.outputs, of.call, **of.options)
    arrays = [value.array if isinstance(value, In) else value for value in of.inputs.values()]
    with np.errstate(all="ignore"):
        expected = of.expected(*(array.astype(np.float64) for array in arrays))
    wanted = expected if isinstance(expected, tuple) else (expected,)
    for (name, out), want in zip(of.outputs.items(), wanted, strict=True):
        got = found[name].astype(np.float64)
        if of.exact or not out.dtype.is_float:
            np.testing.assert_array_equal(got, want, err_msg=name)
        else:
            rounding = 2**-7 if out.dtype == nl.bfloat16 else 1e-5
            scale = np.abs(np.where(np.isfinite(want), want, 0)).max()
            np.testing.assert_allclose(
                got, want, rtol=rounding, atol=1e-6 * scale, equal_nan=True, err_msg=name
            )
