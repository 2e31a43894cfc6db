"""Where a linear layer's weight layout is chosen: once, after loading, for inference.

Models are made of plain `nn.Linear`. `prepack` turns the large ones into `PackedLinear`, which
holds its weight in the blocked layout of oneDNN, in place of the plain one; `unpack` turns them
back. What was measured is in docs/decisions/0004-linear-weight-layout.md.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Self, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.library import Library, register_fake

ROWS = 32  # rows that oneDNN lays a weight out for; this hint is fast at 1 to 512 rows alike
MIN_ELEMENTS = 1 << 18  # below, oneDNN's cost per call (20 us) outweighs what its layout saves


def prepack(model: nn.Module) -> str:
    """Give each linear layer of `model` the weight layout that is fastest for inference.

    On a CPU, float32 weights of at least MIN_ELEMENTS elements are repacked for oneDNN; all others
    stay plain. A packed layer holds its weight once, except where another module shares it (a tied
    `lm_head`): there the plain one stays beside it, and that matrix takes its memory twice.

    `state_dict`, `save_pretrained`, copies and pickles hold plain weights; `parameters()` lists
    only what is not packed. Moving, casting, training, loading a state into a packed layer or
    giving it another weight unpacks it, and so does a change of a shared weight (in compiled code
    only where the weight is assigned, not where it is changed in place). Export the plain model.

    Args:
        model: in eval mode.

    Returns:
        One line for a log: the layout chosen and why.

    Raises:
        ValueError: the model is in training mode.
    """
    if model.training:
        raise ValueError(
            "model: expected eval mode (packed weights take no gradient), got training mode; "
            "call model.eval() first"
        )
    if not torch.backends.mkldnn.is_available():
        return "plain weights: this build of torch has no oneDNN"
    users = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    large = [m for m in linears if m.in_features * m.out_features >= MIN_ELEMENTS]
    packed = 0
    for linear in large:
        if type(linear) is nn.Linear and _fits(linear.weight):
            PackedLinear.pack(linear, shared=users[id(linear.weight)] > 1)
        packed += isinstance(linear, PackedLinear)
    return (
        f"oneDNN weights in {packed} of {len(linears)} linear layers: "
        f"{len(large)} have {MIN_ELEMENTS:,} elements or more, {packed} of these are float32 on cpu"
    )


def unpack(model: nn.Module) -> None:
    """Turn every packed layer of `model` back into a plain `nn.Linear`, in place."""
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.unpack()


class PackedLinear(nn.Linear):
    """An `nn.Linear` whose weight (out, in) lies in oneDNN's blocked layout; `pack` makes it.

    `weight` is the plain weight where another module shares it, else None.
    """

    _packed: Tensor
    _source: tuple[object, ...]
    _handle: Tensor
    _trainable: bool

    @staticmethod
    def pack(linear: nn.Linear, shared: bool) -> None:
        """Turn `linear` (float32, CPU) into a packed layer, in place.

        Args:
            shared: another module uses the plain weight too, so it must stay.
        """
        packed, trainable = _reorder(linear.weight.detach()), linear.weight.requires_grad
        if not shared:
            linear.register_parameter("weight", None)
        linear.__class__ = PackedLinear
        self = cast(PackedLinear, linear)
        self._packed, self._trainable = packed, trainable
        self._handle, self._source = _register(packed), _stamp(self._parameters["weight"])

    def unpack(self) -> nn.Linear:
        """Turn back into a plain `nn.Linear`, in place; returns itself."""
        packed, trainable = self._packed, self._trainable
        del self._packed, self._handle, self._trainable, self._source
        linear = cast(nn.Linear, self)
        linear.__class__ = nn.Linear
        if linear._parameters["weight"] is None:
            linear.weight = nn.Parameter(packed.to_dense(), trainable)
        return linear

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As in `nn.Linear`, which a layer becomes where a weight is assigned."""
        self.unpack().register_parameter(name, param)

    def forward(self, input: Tensor) -> Tensor:
        """x W^T + b for float32 (..., in) on the CPU, without gradient.

        Raises:
            RuntimeError: a gradient is asked for.
            ValueError: the input is not float32 on the CPU.
        """
        changed = not torch.compiler.is_compiling() and (
            self._source != _stamp(self._parameters["weight"])
        )
        if changed:
            return cast(Tensor, self.unpack()(input))
        if input.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "packed linear layer: expected no gradient, got an input that requires one; use "
                "torch.inference_mode(), or call bmojo_neuron.linear.unpack(model) first"
            )
        if not _fits(input):
            raise ValueError(
                "input: expected float32 on cpu, as this layer's packed weight is, got "
                f"{input.dtype} on {input.device}; or call bmojo_neuron.linear.unpack(model) first"
            )
        y: Tensor = _packed_linear(input, self._handle, self.bias, self.out_features)
        return y

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; training unpacks."""
        return cast(Self, self.unpack().train()) if mode else super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return cast(Self, self.unpack()._apply(fn, recurse))  # moved or cast

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack()._load_from_state_dict(*args, **kwargs)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        if self._parameters["weight"] is None:
            destination[prefix + "weight"] = self._packed.to_dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def __getstate__(self) -> dict[str, Any]:  # copy and pickle cannot handle oneDNN's tensors
        packed = self._packed.to_dense() if self._parameters["weight"] is None else None
        return {**self.__dict__, "_packed": packed, "_handle": None, "_source": ()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        weight = state["_parameters"]["weight"]
        packed = _reorder(state["_packed"] if weight is None else weight.detach())
        made = {"_packed": packed, "_handle": _register(packed), "_source": _stamp(weight)}
        super().__setstate__({**state, **made})  # type: ignore[no-untyped-call]


# A compiler cannot trace oneDNN's opaque tensors. So the product is an op of our own, which finds
# its weight by a number; the number is a tensor, so that layers of one shape share compiled code.
_weights: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
_numbers = itertools.count()


def _register(packed: Tensor) -> Tensor:
    number = next(_numbers)
    _weights[number] = packed
    return torch.tensor(number)


def _product(x: Tensor, handle: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    weight = _weights[int(handle)]
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))


def _shape(x: Tensor, handle: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


_library = Library("bmojo", "DEF")
_library.define("packed_linear(Tensor x, Tensor handle, Tensor? bias, int out_features) -> Tensor")
_library.impl("packed_linear", _product, "CPU")
register_fake("bmojo::packed_linear", _shape, lib=_library)
_packed_linear = torch.ops.bmojo.packed_linear.default


def _stamp(weight: Tensor | None) -> tuple[object, ...]:
    """Differs once another tensor stands there, or this one was written to."""
    if weight is None:
        return ()
    written = None if weight.is_inference() else weight._version
    return id(weight), weight.data_ptr(), written


def _fits(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu"


def _reorder(weight: Tensor) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight, ROWS))
