"""What a checkpoint is and what a session of it costs, from its headers alone.

Letters: T tokens of a session.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import metadata_load
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn

from bmojo_neuron.checkpoints.loading import open_checkpoint, our_shapes
from bmojo_neuron.checkpoints.reading import Tensors, read_json
from bmojo_neuron.configuration import BMojoConfig

LENGTHS = (4_096, 32_768, 131_072)  # tokens of a session
PROVENANCE = ("license", "licence", "_name_or_path", "base_model", "architectures")
CARD = ("license", "license_name", "license_link", "base_model", "datasets")  # of README.md
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
HEADS = (128, 64, 32, 16, 8, 4, 2)  # head dims of a Transformer in place of a model without heads


@dataclass(frozen=True)
class Layer:
    """One block: what it is, its parameters, and bytes of state after T tokens."""

    index: int
    kind: str
    parameters: int
    state_bytes: int


@dataclass(frozen=True)
class Report:
    """All that `inspect` found.

    Attributes:
        model_type: of the directory's config.json.
        tokens: T of the layers' state_bytes.
        session_bytes: of a session after so many tokens.
        transformer_bytes: the same, if every layer were full attention: with the model's own heads,
            or where it has none, with `transformer`.
        transformer: the heads of that attention, in words.
        provenance: what config.json, README.md's front matter, the licence file and the tensors'
            file say of where it comes from, by where they say it.
    """

    path: str
    model_type: str
    dtype: str
    parameters: int
    tokens: int
    layers: tuple[Layer, ...]
    session_bytes: dict[int, int]
    transformer_bytes: dict[int, int]
    transformer: str
    provenance: dict[str, Any]

    def to_json(self) -> str:
        """As JSON, fields by name."""
        return json.dumps(asdict(self), indent=2)


def inspect(directory: Path, tokens: int = LENGTHS[0]) -> Report:
    """Look at a checkpoint of any family without loading it.

    Args:
        tokens: T, at which the layers' states are counted.

    Raises:
        ValueError: the directory holds no whole checkpoint; see `open_checkpoint`.
    """
    checkpoint = open_checkpoint(directory)
    config, given = checkpoint.config, read_json(directory / "config.json")
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    counts: dict[str, int] = defaultdict(int)
    for name, shape in our_shapes(config).items():
        counts[".".join(name.split(".")[:3])] += torch.Size(shape).numel()
    states = _state_bytes(config, dtype, tokens)
    whole = as_transformer(config)
    lengths = sorted({tokens, *LENGTHS})
    return Report(
        path=str(directory),
        model_type=str(given["model_type"]),
        dtype=str(dtype).removeprefix("torch."),
        parameters=sum(counts.values()),
        tokens=tokens,
        layers=tuple(
            Layer(i, kind, counts[f"model.layers.{i}"], states[f"layers.{i}"])
            for i, kind in enumerate(config.block_types)
        ),
        session_bytes={n: sum(_state_bytes(config, dtype, n).values()) for n in lengths},
        transformer_bytes={n: sum(_state_bytes(whole, dtype, n).values()) for n in lengths},
        transformer=f"{whole.num_attention_heads} heads of {whole.head_dim}, "
        f"{whole.num_key_value_heads} of keys and values",
        provenance=provenance(checkpoint.tensors, given),
    )


def as_transformer(config: BMojoConfig) -> BMojoConfig:
    """The same model with full attention in every layer.

    A model without attention (Mamba) has no heads of its own: it gets heads of 128, or of the
    largest smaller power of two that divides its hidden size, each with its own keys and values.
    """
    changes: dict[str, Any] = {"block_types": ["attention"] * config.num_hidden_layers}
    if not set(config.block_types) & {"attention", "sliding_attention", "bmojo", "bmojo_f"}:
        width = next((size for size in HEADS if config.hidden_size % size == 0), 2)
        heads = -(-config.hidden_size // width)
        changes |= {"head_dim": width, "num_attention_heads": heads, "num_key_value_heads": heads}
    return BMojoConfig.from_dict(config.to_dict() | changes)


def provenance(tensors: Tensors, given: dict[str, Any]) -> dict[str, Any]:
    """What a directory says of its origin and licence, by where it says it."""
    directory = tensors.directory
    found = {name: given[name] for name in PROVENANCE if given.get(name)}
    card = directory / "README.md"
    if card.is_file():
        try:
            said = metadata_load(card) or {}
        except Exception:  # whatever the YAML is: a card that cannot be read says nothing
            said = {}
        found |= {f"README.md {name}": said[name] for name in CARD if said.get(name)}
    for name in LICENCES:
        if (directory / name).is_file():
            lines = (directory / name).read_text("utf-8", errors="replace").split("\n")
            found[name] = next((line.strip() for line in lines if line.strip()), "empty")
    said = {f"safetensors {name}": value for name, value in sorted(tensors.metadata.items())}
    return found | said


def render(report: Report) -> Group:
    """A report as tables for a rich console."""
    layers = Table(box=None)
    for column in ("layer", "type", "parameters", f"state after {report.tokens:,} tokens"):
        layers.add_column(column, justify="left" if column == "type" else "right")
    for layer in report.layers:
        row = (str(layer.index), layer.kind, f"{layer.parameters:,}", _bytes(layer.state_bytes))
        layers.add_row(*row)
    costs = Table(box=None)
    for column in ("tokens", "this model", "as a Transformer", "share"):
        costs.add_column(column, justify="right")
    for n, size in report.session_bytes.items():
        full = report.transformer_bytes[n]
        costs.add_row(f"{n:,}", _bytes(size), _bytes(full), f"{size / full:.1%}")
    facts = {
        "format": report.model_type,
        "parameters": f"{report.parameters:,} {report.dtype}",
        **{name: str(value) for name, value in report.provenance.items()},
    }
    lines = [Text(f"{name}: {value}") for name, value in facts.items()]
    session = Text(f"A session (the Transformer: {report.transformer})")
    return Group(*lines, Text(), Text(report.path), layers, Text(), session, costs)


def _state_bytes(config: BMojoConfig, dtype: torch.dtype, tokens: int) -> dict[str, int]:
    """Bytes by layer, of one session after so many tokens; nothing is allocated."""
    from bmojo_neuron.model import BMojoModel

    with torch.device("meta"):
        model = BMojoModel(config)
        nn.Module.to(model, dtype)
        state = model.new_state(1, tokens, torch.device("meta"))
    sizes: dict[str, int] = defaultdict(int)
    for name, part in state.items():
        sizes[".".join(name.split(".")[:2])] += part.numel() * part.element_size()
    return sizes


def _bytes(size: int) -> str:
    value, units = float(size), iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    while value >= 1000 and unit != "GB":
        value, unit = value / 1000, next(units)
    return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
