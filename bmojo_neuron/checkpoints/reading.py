"""A directory of safetensors files, read tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NAMED = 20  # names of tensors that a message lists at most
Shape = tuple[int, ...]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file is missing or holds none.
    """
    try:
        given = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name}: expected JSON in {path.parent}, got: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path.name}: expected a JSON object, got {type(given).__name__}")
    return given


class Tensors:
    """The tensors of a directory by name, each read when it is asked for.

    Attributes:
        shapes: of all tensors, from the files' headers.
        metadata: of these headers, but for the format.

    Raises:
        ValueError: there are no safetensors files, one is missing or broken, or the index does not
            say in which one file each tensor is.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files = _files(directory)
        self.shapes: dict[str, Shape] = {}
        self.metadata: dict[str, str] = {}
        held: dict[str, list[str]] = {}
        for file in sorted(set(self._files.values())):
            try:
                with safe_open(directory / file, "pt") as opened:
                    self.metadata |= opened.metadata() or {}
                    for name in opened.keys():  # noqa: SIM118 (it is no dict)
                        self.shapes[name] = tuple(opened.get_slice(name).get_shape())
                        held.setdefault(name, []).append(file)
            except (OSError, SafetensorError) as error:
                raise ValueError(
                    f"{file}: expected a whole safetensors file in {directory}, got: {error}"
                ) from error
        self.metadata.pop("format", None)
        if self._files != {"*": SINGLE}:
            _check_index(self._files, held)
        self._files = {name: files[0] for name, files in held.items()}

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.directory / self._files[name], "pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor


def _files(directory: Path) -> dict[str, str]:
    """Tensor name -> file; of a single file all under one name that stands for its tensors."""
    if (directory / SINGLE).is_file():
        return {"*": SINGLE}
    if (directory / INDEX).is_file():
        weights = read_json(directory / INDEX).get("weight_map")
        if not isinstance(weights, Mapping) or not all(
            isinstance(file, str) and Path(file).name == file for file in weights.values()
        ):
            raise ValueError(f"{INDEX}: expected a weight_map from tensor names to file names")
        return dict(weights)
    others = sorted(file.name for file in directory.glob("*.bin"))
    got = f"only {', '.join(others)}, which can run code when they are read" if others else "none"
    raise ValueError(
        f"{SINGLE}: expected safetensors files in {directory}, got {got}; "
        "save_pretrained of a current transformers writes them"
    )


def _check_index(named: Mapping[str, str], held: Mapping[str, list[str]]) -> None:
    faults = {
        "names tensors that its files lack": named.keys() - held.keys(),
        "names no file for tensors that its files hold": held.keys() - named.keys(),
        "names one file for tensors that several hold": {n for n in held if len(held[n]) > 1},
        "names the wrong file for": {n for n in held if named.get(n) not in held[n]},
    }
    for what, tensors in faults.items():
        if tensors:
            raise ValueError(f"{INDEX}: {what}: {some(tensors)}")


def some(names: Iterable[str]) -> str:
    """The first of them, and how many more there are."""
    listed = sorted(names)
    more = [f"and {len(listed) - NAMED} more"] if len(listed) > NAMED else []
    return ", ".join(listed[:NAMED] + more)
