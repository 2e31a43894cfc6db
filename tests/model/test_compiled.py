"""Compiled steps say what plain ones say, for every way in which a step is called."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from bmojo_neuron import BMojoConfig, BMojoForCausalLM
from bmojo_neuron.compiled import compile_steps
from bmojo_neuron.model import run_block


def has_compiler() -> bool:
    try:
        return bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="this machine has no C++ compiler")


@pytest.fixture(scope="module")
def model() -> BMojoForCausalLM:
    torch.manual_seed(0)
    config = BMojoConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        vocab_size=64,
        block_types=["bmojo", "bmojo", "attention"],
        window=8,
        eidetic_size=8,
        initializer_range=0.2,
    )
    return BMojoForCausalLM(config).eval()


@pytest.fixture(scope="module")
def compiled(model: BMojoForCausalLM) -> BMojoForCausalLM:
    """Compiled for one row."""
    other = copy.deepcopy(model)
    torch._dynamo.reset()
    counters.clear()
    compile_steps(other)
    return other


def feed(
    model: BMojoForCausalLM, ids: Tensor, cuts: list[int], lengths: list[int] | None
) -> Tensor:
    """All logits of `ids` fed in pieces, then those of one more token."""
    state, out = model.new_state(len(ids)), []
    with torch.inference_mode():
        for part in ids.split(cuts, dim=1):
            logits, state = model.feed(part, state, all_tokens=True, donate=True)
            out.append(logits)
        last, _ = model.feed(ids[:, :5], state, lengths=lengths)
    return torch.cat([*out, last.unsqueeze(1)], dim=1)


@needs_compiler
def test_one_code_for_all_blocks_of_a_kind(compiled: BMojoForCausalLM) -> None:
    ids = torch.arange(40).view(1, -1)
    with torch._dynamo.config.patch(error_on_recompile=True):
        feed(compiled, ids, [8, 16, 1, 1, 14], None)  # all that a server's session does
    assert (
        counters["stats"]["unique_graphs"] == 3
    )  # two blocks of one kind: chunk, token, donated token


@needs_compiler
@pytest.mark.parametrize("cuts", [[32], [8, 8, 16], [3, 1, 1, 1, 10, 16]])
def test_compiled_equals_plain(
    model: BMojoForCausalLM, compiled: BMojoForCausalLM, cuts: list[int]
) -> None:
    ids = torch.randint(0, 64, (1, 32), generator=torch.Generator().manual_seed(1))
    expected = feed(model, ids, cuts, None)
    torch.testing.assert_close(feed(compiled, ids, cuts, None), expected, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_rows_of_other_lengths(model: BMojoForCausalLM, compiled: BMojoForCausalLM) -> None:
    ids = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(2))
    expected = feed(model, ids, [8, 1], [1, 0])
    torch.testing.assert_close(feed(compiled, ids, [8, 1], [1, 0]), expected, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_gradients_run_uncompiled(compiled: BMojoForCausalLM) -> None:
    ids = torch.arange(8).view(1, -1)
    logits, _ = compiled.feed(ids, compiled.new_state(), all_tokens=True)
    logits.sum().backward()
    assert compiled.model.embed_tokens.weight.grad is not None


def test_training_mode_is_refused(model: BMojoForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"model: expected eval mode .* call model\.eval\(\)"):
        compile_steps(copy.deepcopy(model).train())


def test_a_machine_without_compiler_says_so(model: BMojoForCausalLM) -> None:
    other = copy.deepcopy(model)
    with (
        inductor.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(RuntimeError, match=r"expected a C\+\+ compiler .* install"),
    ):
        compile_steps(other)
    assert other.model.run_block is run_block
