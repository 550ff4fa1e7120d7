"""Trained weights as one ``.safetensors`` file that says what they are: network, class names, preprocessing."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from effnet.files import replacing
from effnet.preprocessing import Preprocessing

METADATA_KEY = "effnet"


@dataclass(frozen=True)
class Labels:
    """What a file of weights is for."""

    model: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing


def save_result(path: Path, model: nn.Module, labels: Labels) -> None:
    """Write the state dict of ``model`` with ``labels`` in the file's metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={"format": "pt", METADATA_KEY: json.dumps(asdict(labels))})


def read_labels(path: Path) -> Labels | None:
    """What :func:`save_result` wrote about ``path``, or None where it was written by something else.

    Raises:
        ValueError: the file is damaged, or its description is.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
        if text is None:
            return None
        values = json.loads(text)
        preprocessing = values["preprocessing"]
        triples = {name: tuple(preprocessing[name]) for name in ("mean", "std")}
        return Labels(values["model"], tuple(values["classes"]), Preprocessing(**{**preprocessing, **triples}))
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a readable file of weights: {error}") from error
