"""`nki.typing`: annotations of a kernel's arguments."""

from nki_kernels.simulator.tensor import NkiTensor as tensor


class mutable_tensor:
    """Annotates an HBM input that the kernel writes."""


__all__ = ["mutable_tensor", "tensor"]
