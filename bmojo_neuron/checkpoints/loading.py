"""A checkpoint of any family as our model: checked whole by its headers, then filled tensor by
tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from bmojo_neuron.checkpoints import Family, family_of, hybrid_qwen3
from bmojo_neuron.checkpoints.reading import Shape, Tensors, read_json, some
from bmojo_neuron.configuration import BMojoConfig

if TYPE_CHECKING:
    from bmojo_neuron.causal_lm import BMojoForCausalLM

HEAD = "lm_head.weight"
SILENT = 1e9  # bytes up to which loading shows no progress


@dataclass(frozen=True)
class Checkpoint:
    """A directory, understood.

    Attributes:
        family: None for our own format.
        config: the architecture.
        tensors: of the directory.
        names: our tensor name -> theirs.
    """

    family: Family | None
    config: BMojoConfig
    tensors: Tensors
    names: dict[str, str]

    def read(self, name: str, shape: Shape) -> Tensor:
        """The tensor of our name, in our shape."""
        return self.tensors[self.names[name]].reshape(shape)


def is_foreign(directory: Path) -> bool:
    """Whether the directory holds a model of another family."""
    config = directory / "config.json"
    return config.is_file() and family_of(read_json(config).get("model_type")) is not None


def open_checkpoint(directory: Path, unfuse: bool = False) -> Checkpoint:
    """Understand a directory and check that it is whole, by its headers alone.

    Args:
        unfuse: of layers that hold two memories for training (Hybrid-Qwen3) take the one that is
            trained, and leave out the other's tensors.

    Raises:
        ValueError: a file is absent or broken; the configuration says something that cannot be
            honoured; tensors are missing, left over or of another shape (the message names them).
    """
    given = read_json(directory / "config.json")
    if given.get("auto_map"):
        raise ValueError(
            "auto_map: expected none, as no code of a checkpoint is run here, got "
            f"{given['auto_map']!r}; remove the key if the architecture is one of ours"
        )
    family = family_of(given.get("model_type"))
    if unfuse:
        if family is not hybrid_qwen3:
            raise ValueError(
                f"unfuse: expected a {hybrid_qwen3.MODEL_TYPE} directory, as no other family has "
                f"fused layers, got {given.get('model_type')!r}"
            )
        fused, given = given, hybrid_qwen3.unfuse(given)
    try:
        config = BMojoConfig.from_dict(given) if family is None else family.read_config(given)
    except (AttributeError, KeyError, TypeError) as error:  # of what is no value of its field
        raise ValueError(f"config.json: expected the fields of a model, got: {error}") from error
    tensors = Tensors(directory)
    shapes = our_shapes(config)
    names = {name: name for name in shapes} if family is None else family.names(config)
    assert names.keys() == shapes.keys(), names.keys() ^ shapes.keys()
    if unfuse:
        for name in hybrid_qwen3.left_out(fused, names.values(), list(tensors.shapes)):
            del tensors.shapes[name]
    for old, new in getattr(family, "ALIASES", ()):
        held = {name.partition(old)[0] for name in tensors.shapes if old in name}
        for ours, theirs in names.items():  # a module's tensors all have the one name or the other
            place, found, rest = theirs.partition(old)
            if found and place not in held and place + new + rest in tensors.shapes:
                names[ours] = place + new + rest
    _leave_out_copies(config, tensors, names["model.embed_tokens.weight"])
    _check(names, shapes, tensors.shapes, directory)
    return Checkpoint(family, config, tensors, names)


def _leave_out_copies(config: BMojoConfig, tensors: Tensors, embedding: str) -> None:
    """What files of older versions hold besides: tables of rotary frequencies, which follow from
    the configuration, and a tied head that equals the embedding (another one is left over).
    """
    for name in [name for name in tensors.shapes if name.endswith(".rotary_emb.inv_freq")]:
        del tensors.shapes[name]
    if not config.tie_word_embeddings or not {HEAD, embedding} <= tensors.shapes.keys():
        return
    if torch.equal(tensors[HEAD], tensors[embedding]):
        del tensors.shapes[HEAD]


def our_shapes(config: BMojoConfig) -> dict[str, Shape]:
    """Every tensor of a model of ours, tied ones once; nothing is allocated."""
    with torch.device("meta"):
        model = _empty(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def load_checkpoint(directory: Path, dtype: torch.dtype | None = None) -> BMojoForCausalLM:
    """The model of a directory of any family, in eval mode.

    Weights that need no cast are pages of the files, private to the model once it writes to them.
    Meanwhile the files may be deleted or replaced, but not overwritten in place.

    Args:
        dtype: of the weights; None: as the configuration says, or else as they are stored.

    Raises:
        ValueError: see `open_checkpoint`.
    """
    return fill(open_checkpoint(directory), dtype)


def fill(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> BMojoForCausalLM:
    """The model of a checkpoint, tensor by tensor; see `load_checkpoint`."""
    directory = checkpoint.tensors.directory
    wanted = dtype or checkpoint.config.dtype
    with torch.device("meta"):
        model = _empty(checkpoint.config)
    parameters = dict(model.named_parameters())
    size = sum(p.numel() for p in parameters.values()) * 2.0
    with tqdm(parameters, desc="loading", unit="tensor", disable=size < SILENT) as names:
        for name in names:
            value = checkpoint.read(name, tuple(parameters[name].shape))
            if wanted is not None:
                value = value.to(wanted)
            _put(model, name, value.contiguous())
    model.tie_weights()
    if (directory / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory, local_files_only=True)
    _warn_of_nan(model)
    model.train(False)
    return model


def _empty(config: BMojoConfig) -> BMojoForCausalLM:
    from bmojo_neuron.causal_lm import BMojoForCausalLM

    return BMojoForCausalLM(config)


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    path, _, last = name.rpartition(".")
    model.get_submodule(path).register_parameter(last, nn.Parameter(value))


def _warn_of_nan(model: nn.Module) -> None:
    import warnings

    parameters = model.named_parameters()  # aminmax: one pass that takes no memory, and NaN wins
    broken = [name for name, p in parameters if not all(x.isfinite() for x in p.aminmax())]
    if broken:
        warnings.warn(f"weights that are not finite: {some(broken)}", stacklevel=3)


def _fits(theirs: Shape, ours: Shape) -> bool:
    """The same but for axes of one, or flat in theirs."""
    squeezed = tuple(size for size in theirs if size != 1)
    return squeezed == tuple(size for size in ours if size != 1) or theirs == (math.prod(ours),)


def _check(
    names: Mapping[str, str], ours: Mapping[str, Shape], theirs: Mapping[str, Shape], where: Path
) -> None:
    missing = [name for name in names.values() if name not in theirs]
    unexpected = theirs.keys() - set(names.values())
    wrong = [
        f"{name} {list(theirs[name])} for {list(ours[own])}"
        for own, name in names.items()
        if name in theirs and not _fits(theirs[name], ours[own])
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
    found = [f"{len(them)} {what} ({some(them)})" for what, them in faults.items() if them]
    if found:
        raise ValueError(
            f"expected each tensor of the model that config.json describes in "
            f"{str(where)!r}, got {', '.join(found)}"
        )
