"""The dtypes of NKI on numpy and ml_dtypes storage, and the rounding of a write.

Arithmetic is float32 whatever the dtypes; the result is rounded once, when it is written: to the
nearest, ties to even, for floats; the same with saturation for integers. NaN becomes the integer 0
(decided here: the documentation is silent). float8 and float16 overflow to infinity where the
format has one.
"""

from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Dtype:
    """A dtype of the device. Equal to itself, to its name and to its numpy dtype."""

    def __init__(self, name: str, storage: Any, kind: str) -> None:
        self.name, self.kind = name, kind  # kind: float, int, uint, bool, packed
        self.dtype = np.dtype(storage)  # numpy reads this attribute: np.zeros(2, nl.float32)
        self.itemsize = self.dtype.itemsize

    @property
    def is_float(self) -> bool:
        """Whether a tile of it holds fractions."""
        return self.kind == "float"

    def __eq__(self, other: Any) -> bool:
        if isinstance(other, Dtype):
            return self.name == other.name
        if isinstance(other, str):
            return self.name == other
        try:
            return (
                self.name != "tfloat32" and self.kind != "packed" and self.dtype == np.dtype(other)
            )
        except TypeError:
            return False

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return self.name


float32 = Dtype("float32", np.float32, "float")
tfloat32 = Dtype("tfloat32", np.float32, "float")
bfloat16 = Dtype("bfloat16", ml_dtypes.bfloat16, "float")
float16 = Dtype("float16", np.float16, "float")
float8_e4m3 = Dtype("float8_e4m3", ml_dtypes.float8_e4m3, "float")
float8_e4m3fn = Dtype("float8_e4m3fn", ml_dtypes.float8_e4m3fn, "float")
float8_e8m0fnu = Dtype("float8_e8m0fnu", ml_dtypes.float8_e8m0fnu, "float")  # MX scales
float8_e5m2 = Dtype("float8_e5m2", ml_dtypes.float8_e5m2, "float")
int8 = Dtype("int8", np.int8, "int")
int16 = Dtype("int16", np.int16, "int")
int32 = Dtype("int32", np.int32, "int")
int64 = Dtype("int64", np.int64, "int")  # HBM only, for scalar_load (0.7)
uint8 = Dtype("uint8", np.uint8, "uint")
uint16 = Dtype("uint16", np.uint16, "uint")
uint32 = Dtype("uint32", np.uint32, "uint")
bool_ = Dtype("bool_", np.bool_, "bool")

# Four MX elements in one, the first in the lowest bits.
float8_e4m3fn_x4 = Dtype("float8_e4m3fn_x4", np.uint32, "packed")
float8_e5m2_x4 = Dtype("float8_e5m2_x4", np.uint32, "packed")
float4_e2m1fn_x4 = Dtype("float4_e2m1fn_x4", np.uint16, "packed")
PACKED = (float8_e4m3fn_x4, float8_e5m2_x4, float4_e2m1fn_x4)

ALL = (
    *(float32, tfloat32, bfloat16, float16, float8_e4m3, float8_e4m3fn, float8_e5m2),
    *(float8_e8m0fnu, int8, int16, int32, int64, uint8, uint16, uint32, bool_),
)
FLOATS = frozenset(dtype for dtype in ALL if dtype.is_float)
INTEGERS = frozenset(dtype for dtype in ALL if dtype.kind in ("int", "uint"))
BY_NAME = {dtype.name: dtype for dtype in ALL + PACKED} | {"bool": bool_}
_BY_STORAGE = {dtype.dtype: dtype for dtype in reversed(ALL) if dtype is not tfloat32}


def find(value: Any) -> Dtype | None:
    """The dtype of a `Dtype`, a name or anything that numpy takes for a dtype; None if none."""
    if isinstance(value, Dtype):
        return value
    if isinstance(value, str) and value in BY_NAME:
        return BY_NAME[value]
    try:
        return _BY_STORAGE.get(np.dtype(value))
    except TypeError:
        return None


def cast(values: Array, target: Dtype) -> Array:
    """`values` (float32 or integers) rounded to the storage of `target`."""
    if target is tfloat32:
        return _to_tfloat32(values.astype(np.float32))
    if values.dtype == target.dtype:
        return values
    if target.is_float:
        return values.astype(np.float32, copy=False).astype(target.dtype, copy=False)
    if target is bool_:
        return np.not_equal(values, 0)
    bounds = np.iinfo(target.dtype)
    if values.dtype.kind in "iub":
        return np.clip(values.astype(np.int64), bounds.min, bounds.max).astype(target.dtype)
    whole: Array = np.rint(values.astype(np.float64))
    whole = np.where(np.isnan(whole), 0, np.clip(whole, bounds.min, bounds.max))
    return whole.astype(target.dtype)


def _to_tfloat32(values: Array) -> Array:
    """Ten bits of mantissa, to the nearest, ties to even; infinities and NaN as they are."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))) & np.uint32(
        0xFFFFE000
    )
    result: Array = np.where(np.isfinite(values), rounded.view(np.float32), values)
    return result
