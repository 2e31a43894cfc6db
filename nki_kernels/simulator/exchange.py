"""A caller's arrays as HBM tensors and a kernel's tensors as arrays: numpy's, or torch's as given.

torch is never imported here: who hands in a tensor of it has done so.
"""

import copy
import dataclasses
import inspect
import sys
from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np

from nki_kernels.simulator import dtypes
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.dtypes import Array
from nki_kernels.simulator.errors import kernel_line
from nki_kernels.simulator.language.control import NKIObject
from nki_kernels.simulator.memory import Buffer, Storage
from nki_kernels.simulator.tensor import NkiTensor

SAME_WIDTH = {1: "uint8", 2: "int16"}  # integers that numpy and torch share, by bytes


class Exchange:
    """One launch's arrays. Tuples, lists, dicts, dataclasses and NKIObjects are looked into."""

    def __init__(self) -> None:
        self._copies: list[tuple[Array, Array]] = []  # (array of the caller, contiguous copy)
        self._torch = False  # an argument was a torch tensor: so are the results

    def tensors(self, value: Any, name: str, mutable: bool) -> Any:
        """The argument with arrays as HBM tensors. A field annotated mutable may be written."""
        if _is_object(value):
            declared = inspect.get_annotations(type(value))
            return _same_object(
                value,
                lambda field, item: self.tensors(
                    item, f"{name}.{field}", mutable or "mutable" in str(declared.get(field, ""))
                ),
            )
        if isinstance(value, (list, tuple, dict)):
            return _same_container(value, lambda item: self.tensors(item, name, mutable))
        if isinstance(value, np.generic) or not hasattr(value, "__array__"):
            return value
        return self._tensor(value, name, mutable)

    def _tensor(self, value: Any, name: str, mutable: bool) -> NkiTensor:
        if _is_torch(value):
            self._torch = True
            array = _from_torch(value, name)
        else:
            array = np.asarray(value)
        dtype = dtypes.find(array.dtype)
        if dtype is None:
            refuse(
                "argument-dtype", name, "an array of a dtype of nl, such as float32", array.dtype
            )
            raise AssertionError
        if not array.size:
            refuse("shape", name, "an array with elements", array.shape)
        if not array.flags.c_contiguous:
            self._copies.append((array, np.ascontiguousarray(array)))
            array = self._copies[-1][1]
        storage = Storage.of_array(array, Buffer.hbm, name, kernel_line())
        storage.is_input, storage.mutable = True, mutable
        strides = [step // array.itemsize for step in array.strides]
        return NkiTensor(storage, dtype, array.shape, strides)

    def arrays(self, value: Any) -> Any:
        """The result with tensors as arrays."""
        if _is_object(value):
            return _same_object(value, lambda _, item: self.arrays(item))
        if isinstance(value, (list, tuple, dict)):
            return _same_container(value, self.arrays)
        if not isinstance(value, NkiTensor):
            return value
        _check_output(value)
        array = value.array().copy()
        return _to_torch(array, value) if self._torch else array

    def write_back(self) -> None:
        """Give the caller's arrays what was written to their contiguous copies."""
        for original, copied in self._copies:
            if original.flags.writeable:
                original[...] = copied


def _is_object(value: Any) -> bool:
    known = dataclasses.is_dataclass(value) or isinstance(value, NKIObject)
    return known and not isinstance(value, (type, Enum))


def _same_object(value: Any, change: Callable[[str, Any], Any]) -> Any:
    """A copy of a dataclass or NKIObject with its attributes changed, or itself if none is."""
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    names = (*(field.name for field in fields), *getattr(value, "__dict__", ()))
    before = {name: getattr(value, name) for name in names if hasattr(value, name)}
    after = {name: change(name, item) for name, item in before.items()}
    if all(after[name] is item for name, item in before.items()):
        return value
    made = copy.copy(value)
    for name, item in after.items():
        object.__setattr__(made, name, item)  # frozen ones too
    return made


def _same_container(value: Any, change: Callable[[Any], Any]) -> Any:
    """A list, tuple, named tuple or dict of the changed items."""
    if isinstance(value, dict):
        return {key: change(item) for key, item in value.items()}
    items = [change(item) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _from_torch(tensor: Any, name: str) -> Array:
    """A torch tensor's memory as an array; what numpy lacks (bfloat16, float8) as ml_dtypes'."""
    if tensor.device.type != "cpu":
        refuse("buffer", name, "a tensor on the CPU: tensor.cpu()", tensor.device)
    known = dtypes.BY_NAME.get(str(tensor.dtype).removeprefix("torch."))
    if known is None:
        expected = "a tensor of a dtype of nl, such as torch.float32"
        refuse("argument-dtype", name, expected, tensor.dtype)
        raise AssertionError
    plain = tensor.detach()
    if known.dtype.isbuiltin != 1:
        plain = plain.view(getattr(sys.modules["torch"], SAME_WIDTH[known.itemsize]))
    array: Array = plain.numpy()
    return array.view(known.dtype)


def _to_torch(array: Array, value: NkiTensor) -> Any:
    """A torch tensor over the array's memory."""
    torch: Any = sys.modules["torch"]
    if array.dtype.isbuiltin == 1:
        return torch.from_numpy(array)
    kind = getattr(torch, value.dtype.name, None)
    if kind is None:
        expected = "a dtype that torch has, or numpy arrays as arguments"
        refuse("dtype", "return", expected, value, line=value.storage.line)
    return torch.from_numpy(array.view(SAME_WIDTH[array.itemsize])).view(kind)


def _check_output(value: NkiTensor) -> None:
    line = value.storage.line
    if value.on_chip:
        expected = "a tensor in shared_hbm: copy it there with dma_copy"
        refuse("buffer", "return", expected, value, line=line)
    if value.buffer is not Buffer.shared_hbm and not value.storage.is_input:
        refuse("output-buffer", "return", "buffer=nl.shared_hbm", value, line=line)
    defined = value.storage.defined
    if defined is not None and not defined.any():
        expected = "an output that an instruction wrote"
        refuse("output-unwritten", "return", expected, value, line=line)
    if not value.is_defined():
        expected, got = "an output that was written wholly", f"{value!r}, partly written"
        refuse("read-undefined", "return", expected, got, line=line)
