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
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn

from bmojo_neuron.checkpoints.loading import open_checkpoint, our_shapes
from bmojo_neuron.checkpoints.reading import read_json
from bmojo_neuron.configuration import BMojoConfig

LENGTHS = (4_096, 32_768, 131_072)  # tokens of a session
PROVENANCE = ("license", "licence", "_name_or_path", "base_model", "architectures")


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
        transformer_bytes: the same, if every layer were full attention.
        provenance: keys of config.json that say where it comes from.
    """

    path: str
    model_type: str
    dtype: str
    parameters: int
    tokens: int
    layers: tuple[Layer, ...]
    session_bytes: dict[int, int]
    transformer_bytes: dict[int, int]
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
    whole = BMojoConfig.from_dict(
        config.to_dict() | {"block_types": ["attention"] * config.num_hidden_layers}
    )
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
        provenance={name: given[name] for name in PROVENANCE if given.get(name)},
    )


def render(report: Report) -> Group:
    """A report as tables for a rich console."""
    layers = Table(box=None, title_justify="left", title=Text(report.path))
    for column in ("layer", "type", "parameters", f"state after {report.tokens:,} tokens"):
        layers.add_column(column, justify="left" if column == "type" else "right")
    for layer in report.layers:
        row = (str(layer.index), layer.kind, f"{layer.parameters:,}", _bytes(layer.state_bytes))
        layers.add_row(*row)
    costs = Table(box=None, title_justify="left", title=Text("A session"))
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
    return Group(*lines, Text(), layers, Text(), costs)


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
