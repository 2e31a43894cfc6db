"""From any family's directory to one in our format or in Hybrid-Qwen3's, tensor by tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from bmojo_neuron.checkpoints import hybrid_qwen3
from bmojo_neuron.checkpoints.loading import SILENT, Checkpoint, open_checkpoint, our_shapes
from bmojo_neuron.checkpoints.reading import INDEX, SINGLE, Shape
from bmojo_neuron.checkpoints.staging import check_new, whole
from bmojo_neuron.configuration import BMojoConfig

FORMATS = (BMojoConfig.model_type, hybrid_qwen3.MODEL_TYPE)
CHAT_TEMPLATES = "additional_chat_templates"  # where transformers keeps named ones
NOT_COPIED = ("config.json", INDEX, "README.md", "report.json")


def convert(
    source: Path,
    target: Path,
    to: str = BMojoConfig.model_type,
    dtype: torch.dtype | None = None,
    max_shard_size: int = 5_000_000_000,
    unfuse: bool = False,
) -> BMojoConfig:
    """Write `source` anew in another format; tokenizer, chat template and settings go along.

    Args:
        source: a directory of any family.
        target: a directory that does not exist, or is empty.
        to: one of FORMATS.
        dtype: of the weights; None: as they are stored.
        max_shard_size: bytes of tensors in one file.
        unfuse: see `open_checkpoint`; a checkpoint without fused layers stays as it is.

    Returns:
        The architecture.

    Raises:
        ValueError: the source is not whole, the target is not empty, or the format cannot hold the
            architecture. Nothing has been written then.
    """
    if to not in FORMATS:
        raise ValueError(f"to: expected one of {', '.join(FORMATS)}, got {to!r}")
    check_new(target)
    checkpoint = open_checkpoint(source, unfuse)
    config = checkpoint.config
    if dtype is not None:
        config.dtype = dtype
    written, names = _as_written(config, to)
    shapes = our_shapes(config)
    tensors = (
        (theirs, _tensor(checkpoint, ours, theirs, shapes[ours], to, dtype))
        for ours, theirs in names.items()
    )
    size = 4.0 * sum(torch.Size(shape).numel() for shape in shapes.values())
    with whole(target) as part:
        copy_others(source, part)
        (part / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
        _write(tensors, len(names), part, max_shard_size, quiet=size < SILENT)
    return config


def _as_written(config: BMojoConfig, to: str) -> tuple[dict[str, Any], dict[str, str]]:
    """config.json, and our tensor name -> the one in the file."""
    if to == hybrid_qwen3.MODEL_TYPE:
        return hybrid_qwen3.write_config(config), hybrid_qwen3.names(config)
    config.architectures = ["BMojoForCausalLM"]
    own: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    return own, {name: name for name in our_shapes(config)}


def _tensor(
    checkpoint: Checkpoint,
    ours: str,
    theirs: str,
    shape: Shape,
    to: str,
    dtype: torch.dtype | None,
) -> Tensor:
    tensor = checkpoint.read(ours, shape)
    if to == hybrid_qwen3.MODEL_TYPE:
        tensor = tensor.reshape(hybrid_qwen3.shape_of(theirs, shape))
    return tensor.to(dtype or tensor.dtype).contiguous()


def _write(
    tensors: Iterator[tuple[str, Tensor]], count: int, target: Path, limit: int, quiet: bool
) -> None:
    """Shards of at most `limit` bytes, and their index where there are several."""
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    total = 0

    def close() -> None:
        save_file(held, target / f"shard-{len(shards):05d}", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, tensor in tqdm(tensors, total=count, desc="writing", unit="tensor", disable=quiet):
        size = tensor.numel() * tensor.element_size()
        if held and sum(t.numel() * t.element_size() for t in held.values()) + size > limit:
            close()
        held[name] = tensor
        total += size
    close()
    if len(shards) == 1:
        (target / "shard-00000").rename(target / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (target / f"shard-{i:05d}").rename(target / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (target / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def copy_others(source: Path, target: Path) -> None:
    """Tokenizer, chat templates, generation settings, licence: what is no weight and no code."""
    templates = source / CHAT_TEMPLATES
    if templates.is_dir():
        (target / CHAT_TEMPLATES).mkdir(exist_ok=True)
        for file in templates.glob("*.jinja"):
            shutil.copyfile(file, target / CHAT_TEMPLATES / file.name)
    for file in sorted(source.iterdir()):
        weights = file.suffix in (".safetensors", ".bin", ".pt", ".pth", ".py")
        if file.is_file() and not weights and file.name not in NOT_COPIED:
            shutil.copyfile(file, target / file.name)
