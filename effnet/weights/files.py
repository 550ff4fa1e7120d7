"""Reading a state dict from a file, a wrapper, or another library."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from effnet.config import ALIASES
from effnet.weights.archive import check_archive

StateDict = Mapping[str, Tensor]
WeightsSource = str | os.PathLike[str] | StateDict

_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def fetch_weights(weights: WeightsSource, name: str) -> WeightsSource:
    """``weights``, or the state dict that ``"torchvision"`` or ``"timm"`` stands for, for the model called ``name``.

    Raises:
        ImportError: the library is not installed.
        ValueError: torchvision has no weights of that name.
    """
    if weights == "torchvision":
        return _from_torchvision(name)
    if weights == "timm":
        return _from_timm(name)
    return weights


def read_state_dict(weights: WeightsSource) -> dict[str, Tensor]:
    """The tensors of a file or mapping by name, taken out of the usual wrappers and prefixes.

    A wrapper is a mapping with the state dict under ``state_dict``, ``model_state_dict`` or ``model``; a prefix is
    what ``DistributedDataParallel``, ``torch.compile`` and Lightning put before every name.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: ``weights`` is neither path nor mapping, or holds something other than tensors.
        ValueError: the file cannot be read, or is refused because it holds more than tensors.
    """
    if isinstance(weights, (str, os.PathLike)):
        content = _read_file(Path(weights))
        origin = str(weights)
    else:
        content, origin = weights, "weights"
    content = _unwrapped(content)
    if not isinstance(content, Mapping):
        raise TypeError(f"{origin}: expected a state dict or a path to one, got {type(content).__name__}")
    others = [f"{key} ({type(value).__name__})" for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise TypeError(f"{origin}: expected tensors by name, got also {', '.join(others)}")
    return _without_prefixes({str(key): value for key, value in content.items()})


def _unwrapped(content: Any) -> Any:
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    return content


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            return _without_prefixes({key.removeprefix(prefix): value for key, value in tensors.items()})
    return tensors


def _read_file(path: Path) -> Any:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in _TORCH_SUFFIXES:
        expected = ", ".join((*_TORCH_SUFFIXES, ".safetensors"))
        raise ValueError(f"{path}: expected a file ending in one of {expected}")
    try:
        check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: refused, it is damaged or holds more than tensors: {error}") from error
    except (RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError) as error:
        # A damaged file can stop the unpickler anywhere.
        raise ValueError(f"{path}: not readable as a PyTorch file: {error!r}") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise _missing("safetensors", f"reading {path.name}") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not readable as a safetensors file: {error}") from error


def _from_torchvision(name: str) -> StateDict:
    try:
        from torchvision import models
    except ImportError as error:
        raise _missing("torchvision", "weights='torchvision'") from error
    spelling = {ours: theirs for theirs, ours in ALIASES.items()}.get(name, name)
    if spelling not in models.list_models():
        raise ValueError(f"weights: torchvision has no {name}")
    state_dict: StateDict = models.get_model_weights(spelling).DEFAULT.get_state_dict(progress=True, check_hash=True)
    return state_dict


def _from_timm(name: str) -> StateDict:
    try:
        import timm
    except ImportError as error:
        raise _missing("timm", "weights='timm'") from error
    if not timm.is_model(name):
        raise ValueError(f"weights: timm has no {name}")
    state_dict: StateDict = timm.create_model(name, pretrained=True).state_dict()
    return state_dict


def _missing(library: str, purpose: str) -> ImportError:
    return ImportError(f"{purpose} needs {library}: pip install 'effnet-kernels[train]'")
