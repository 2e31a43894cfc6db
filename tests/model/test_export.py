"""step and select are whole graphs: exported strictly, equal to eager, without surprises inside."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from bmojo_neuron import BMojoForCausalLM
from bmojo_neuron.state import State, copy_state
from tests.model.conftest import random_ids, tiny_model
from tests.model.states import CLOSE, assert_close, assert_same

ROWS = 2
MIXED = "mamba2+bmojo"
KINDS = [MIXED, "bmojo", "bmojo_f", "mamba2", "sliding_attention", "attention"]
CAPACITY = 48  # of full attention, whose state must not grow inside a program

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec")  # torch's own

# What may touch int64: it moves or reads elements and computes nothing with the numbers.
MOVES = {
    *("embedding", "gather", "scatter", "index", "index_select", "index_copy"),
    *("to", "_to_copy", "clone", "contiguous", "view", "reshape", "flatten", "unflatten"),
    *("expand", "expand_as", "transpose", "permute", "slice", "select", "unsqueeze", "squeeze"),
    *("getitem", "_assert_tensor_metadata"),
}
DATA_DEPENDENT = ("nonzero", "local_scalar_dense", "sym_", "unique", "masked_select")


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


class Step(nn.Module):
    def __init__(self, model: BMojoForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, n_valid: Tensor | None, state: State) -> tuple[Tensor, State]:
        return self.model.step(tokens, n_valid, state)


class Select(nn.Module):
    def __init__(self, model: BMojoForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, state: State, at_boundary: Tensor) -> tuple[State, State]:
        return self.model.select(state, at_boundary)


@cache
def model_of(kind: str) -> BMojoForCausalLM:
    if "+" in kind:
        return tiny_model(kind)
    return tiny_model(kind, block_types=[kind], num_hidden_layers=1)


def state_after(model: BMojoForCausalLM, count: int) -> State:
    ids = random_ids(ROWS, count)
    return model.feed(ids, model.new_state(ROWS, capacity=CAPACITY))[1]


def arguments_of(kind: str, program: str) -> tuple[Any, ...]:
    """Of a state in the middle of a text: on a boundary for `select` and `chunk`, else off it."""
    model = model_of(kind)
    if program == "select":
        return state_after(model, 24), torch.tensor([True, False])
    if program == "decode":
        return random_ids(ROWS, 1).int(), None, state_after(model, 29)
    length = 8  # the window: the chunk of all models here that have one
    n_valid = torch.tensor([length, length - 3], dtype=torch.int32)
    return random_ids(ROWS, length).int(), n_valid, state_after(model, 24)


@cache
def exported(kind: str, program: str) -> ExportedProgram:
    """Exported from the state before any token; some also brought down to core ATen."""
    wrapper = Select if program == "select" else Step
    model = model_of(kind)
    empty = model.new_state(ROWS, capacity=CAPACITY)
    arguments = tuple(
        empty if isinstance(argument, dict) else argument
        for argument in arguments_of(kind, program)
    )
    with torch.no_grad():
        graph = torch.export.export(wrapper(model), arguments, strict=True)
        decompose = kind == MIXED and program != "decode"
        return graph.run_decompositions() if decompose else graph


PROGRAMS = [
    *((kind, program) for kind in KINDS for program in ("decode", "chunk")),
    *((kind, "select") for kind in KINDS if "bmojo" in kind.split("+")),
]
programs = pytest.mark.parametrize(("kind", "program"), PROGRAMS)


def tensors(value: Any) -> list[Tensor]:
    values = value if isinstance(value, list | tuple) else [value]
    return [v for v in values if isinstance(v, Tensor)]


def op_name(node: torch.fx.Node) -> str:
    return getattr(node.target, "overloadpacket", node.target).__name__


@programs
def test_the_exported_program_computes_what_eager_does(kind, program):
    module, arguments = exported(kind, program).module(), arguments_of(kind, program)
    before = [copy_state(a) if isinstance(a, dict) else a for a in arguments]
    got = module(*arguments)
    if program == "select":
        expected = model_of(kind).select(*arguments)
        for a, b in zip(got, expected, strict=True):
            assert_close(a, b)
        positions = [part for name, part in got[0].items() if name.endswith("eidetic_position")]
        assert all((part[0] >= 0).all() for part in positions)
    else:
        logits, state = model_of(kind).step(*arguments)
        torch.testing.assert_close(got[0], logits, **CLOSE)
        assert_close(got[1], state)
    for given, copy in zip(arguments, before, strict=True):
        if isinstance(given, dict):
            assert_same(given, copy)


@programs
def test_every_shape_is_known_before_the_data(kind, program):
    graph = exported(kind, program)
    assert not graph.range_constraints
    for node in graph.graph.nodes:
        for tensor in tensors(node.meta.get("val")):
            assert all(type(size) is int for size in tensor.shape), node.format_node()
        assert not isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool)
        if node.op == "call_function":
            assert not any(word in op_name(node) for word in DATA_DEPENDENT), node.format_node()


@programs
def test_a_program_changes_nothing_that_it_is_given(kind, program):
    signature = exported(kind, program).graph_signature
    assert not signature.buffers_to_mutate
    assert not signature.user_inputs_to_mutate
    assert not signature.parameters_to_mutate


def int64_arithmetic(program: ExportedProgram) -> list[str]:
    """Nodes that compute with 64-bit integers; what depends on no input is folded away."""
    depends: set[torch.fx.Node] = set()
    found = []
    for node in program.graph.nodes:
        if node.op == "placeholder" or any(i in depends for i in node.all_input_nodes):
            depends.add(node)
        if node.op != "call_function" or node not in depends:
            continue
        name = op_name(node)
        read = [t for i in node.all_input_nodes for t in tensors(i.meta.get("val"))]
        made = tensors(node.meta.get("val"))
        if name == "sort":  # its indices are made as int64
            made = made[:1]
        if name not in MOVES and any(t.dtype == torch.int64 for t in read + made):
            found.append(node.format_node())
    return found


@programs
def test_no_arithmetic_in_64_bits(kind, program):
    graph = exported(kind, program)
    assert int64_arithmetic(graph) == []
    for node in graph.graph.nodes:
        for tensor in tensors(node.meta.get("val")):
            assert tensor.dtype not in (torch.float64, torch.complex128), node.format_node()


def test_the_search_for_64_bit_arithmetic_finds_it():
    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            index = x.long()
            return index.sort().values + torch.arange(3) * 2

    program = torch.export.export(Sums(), (torch.zeros(3, dtype=torch.int32),), strict=True)
    found = [line.split(" : ")[0] for line in int64_arithmetic(program)]
    assert found == ["%sort", "%add"]


@pytest.mark.parametrize("kind", [MIXED, "attention"])
def test_a_step_compiles_without_a_graph_break(kind):
    model, arguments = model_of(kind), arguments_of(kind, "decode")
    compiled = torch.compile(model.step, fullgraph=True, backend="eager")
    logits, state = compiled(*arguments)
    expected, expected_state = model.step(*arguments)
    torch.testing.assert_close(logits, expected, **CLOSE)
    assert_close(state, expected_state)
