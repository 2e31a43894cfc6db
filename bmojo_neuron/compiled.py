"""Steps as machine code: one block is compiled, and every block of its kind runs that code.

A step is some hundred small operations per block, and with one token each of them costs more to
call than to compute; torch.compile fuses what stands between the matrix products. It compiles one
block, for one shape: T = 1 and T = `model.chunk`, per number of rows. So compiling takes as long
for 48 blocks as for one of each kind. What was measured is in docs/decisions/0005.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from bmojo_neuron.norm import Rotation
from bmojo_neuron.state import State
from bmojo_neuron.window import Call, StepCall

if TYPE_CHECKING:
    from bmojo_neuron.causal_lm import BMojoForCausalLM
    from bmojo_neuron.model import Block

SHAPES = 64  # compiled forms kept per process: kinds of blocks x lengths x numbers of rows


def step_block(
    block: Block,
    h: Tensor,
    here: Rotation,
    behind: Rotation,
    n: Tensor,
    n_valid: Tensor | None,
    donate: bool,
    state: State,
) -> tuple[Tensor, State]:
    """One block of a step as a function of tensors: the geometry is made anew, inside."""
    call = StepCall(n, n_valid, h.shape[1], donate)
    call.here, call.behind = here, behind
    y, new, _ = block(h, call, state)
    return y, new


def compile_steps(model: BMojoForCausalLM, rows: int | None = 1) -> None:
    """Let torch.compile turn the blocks of `model`'s steps into machine code.

    From now on a step of 1 or of `model.chunk` tokens without gradient runs compiled; steps of
    other lengths, layers of full attention (their keys grow) and training run as before. A number
    of rows not seen before is compiled when it comes. Results agree to rounding, not to the bit.
    Call after `prepack`, `to` and `eval`.

    Args:
        model: in eval mode.
        rows: compile now for this many rows (a minute or so, a few seconds where torch's cache
            holds the result); None: when they come.

    Raises:
        ValueError: the model is in training mode.
        RuntimeError: this machine lacks what compiling needs.
    """
    if model.training:
        raise ValueError(
            "model: expected eval mode (compiled steps take no gradient), got training mode; "
            "call model.eval() first"
        )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    compiled = torch.compile(step_block, fullgraph=True, dynamic=False)
    lengths = (1, model.chunk)

    def run(
        block: Block, h: Tensor, call: Call, state: State
    ) -> tuple[Tensor, State, Tensor | None]:
        if (
            not isinstance(call, StepCall)
            or h.shape[1] not in lengths
            or torch.is_grad_enabled()
            or any(part.grows is not None for part in block.layer.parts(h.dtype))
        ):
            plain: tuple[Tensor, State, Tensor | None] = block(h, call, state)
            return plain
        state = {name: _uniform(part) for name, part in state.items()}
        geometry = (call.here, call.behind, _uniform(call.n), call.n_valid, call.in_place)
        y, new = compiled(block, h, *geometry, state)
        return y, new, None

    model.model.run_block = run
    if rows is not None:
        _compile_now(model, rows, lengths)


def _uniform(x: Tensor) -> Tensor:
    """In inference mode all tensors are its own: code is compiled apart for those made outside."""
    return x.clone() if torch.is_inference_mode_enabled() and not x.is_inference() else x


def _compile_now(model: BMojoForCausalLM, rows: int, lengths: tuple[int, ...]) -> None:
    """Run each form once, longest first, as the engine does."""
    from bmojo_neuron.model import run_block

    try:
        if model.device.type == "cpu":
            get_cpp_compiler()
        long, *short = sorted(lengths, reverse=True)
        state = model.new_state(rows)
        with torch.inference_mode():
            # One token on a boundary, whose old state is kept, and one that takes its memory.
            for length in (long, *short, 1):
                part = torch.zeros(rows, length, dtype=torch.int32, device=model.device)
                _, state = model.feed(part, state, donate=True)
    except (InvalidCxxCompiler, BackendCompilerFailed) as error:
        model.model.run_block = run_block
        raise RuntimeError(
            "expected a C++ compiler on PATH (or named by CXX) and Python's headers, got: "
            f"{' '.join(str(error).split())[:200]}; install them (Debian: g++ and python3-dev)"
        ) from error
