"""Loading weights named by another library into a network, and exporting them back."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from effnet.config import TF_BN_EPS, TF_PREFIX, VARIANTS
from effnet.weights.files import WeightsSource, read_state_dict
from effnet.weights.names import LAYOUTS, Layout, classifier_names, end_names, head_names, tensor_names

if TYPE_CHECKING:
    from effnet.model import EfficientNetFeatures

_TIMM_BN_EPS = 1e-5

# What ``source`` may be, and the layout of each: timm's two kinds of file share one.
_SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "effnet": "effnet",
        "torchvision": "torchvision",
        "timm": "timm",
        "tf": "timm",
        "efficientnet_pytorch": "efficientnet_pytorch",
        "efficientnet_lite_pytorch": "efficientnet_pytorch",
    }
)


def load_weights(
    model: "EfficientNetFeatures", weights: WeightsSource, source: str | None = None, *, classifier: bool = True
) -> None:
    """Copy weights of any known origin into ``model``, all or nothing.

    The origin is told by the tensors' names: torchvision's, timm's, those of ``efficientnet_pytorch`` and
    ``efficientnet_lite_pytorch``, or this package's own. It also sets padding and BatchNorm's eps:

    ======================================= ========= ===============================================
    origin                                  padding   eps
    ======================================= ========= ===============================================
    torchvision                             symmetric the variant's (B0–B4 1e-5, B5–B7 and V2 1e-3)
    timm, plain                             symmetric 1e-5
    timm, ``tf_*``                          same      1e-3
    efficientnet_pytorch, …_lite_pytorch    same      1e-3
    effnet                                  unchanged unchanged
    ======================================= ========= ===============================================

    timm's plain and ``tf_*`` files look alike: the name the model was created by decides, or ``source``.

    Args:
        model: from ``effnet.create_model``.
        weights: path of a ``.pth``, ``.pt`` (read with ``weights_only=True``) or ``.safetensors`` file, or a state
            dict; wrappers (``{"state_dict": …}``) and prefixes (``module.``) of training programs are removed.
        source: ``torchvision``, ``timm``, ``tf``, ``efficientnet_pytorch``, ``efficientnet_lite_pytorch`` or
            ``effnet``; by default recognised.
        classifier: False leaves the model's classifier as it is, to fine-tune on other classes.

    A model made with ``features_only=True`` takes the weights of a whole network and leaves out head and classifier.
    ``num_batches_tracked`` may be missing from the file, as PyTorch allows.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: ``weights`` holds something other than tensors.
        ValueError: the file is unreadable or refused, ``source`` is unknown or contradicts the names, or tensors are
            missing, extra or wrongly shaped: all are listed, and the model is unchanged.
    """
    if source is not None and source not in _SOURCES:
        raise ValueError(f"source: expected one of {', '.join(_SOURCES)}, got {source!r}")
    tensors = read_state_dict(weights)
    layout = _recognise(model, tensors, source)
    skipped = set() if classifier else classifier_names(layout)
    if not hasattr(model, "classifier"):
        skipped |= head_names(model, layout)
    targets = _targets(model, layout, skipped)
    given = {name: tensor for name, tensor in tensors.items() if name not in skipped}
    _check_fit(model, layout, targets, given)
    with torch.no_grad():
        for name, tensor in given.items():
            targets[name].copy_(tensor)
    _adopt_conventions(model, layout, source)


def export_weights(model: "EfficientNetFeatures", source: str) -> dict[str, Tensor]:
    """The state dict of ``model`` under the names of ``torchvision``, ``timm`` or ``effnet``.

    The tensors are detached and share memory with the model's. Padding and eps are not part of a state dict: the
    network that takes it has to be built with the same (``model.padding``, ``model.bn_eps``).

    Raises:
        ValueError: an unknown ``source``, or one that has no such network.
    """
    expected = ("torchvision", "timm", "effnet")
    if source not in expected:
        raise ValueError(f"source: expected one of {', '.join(expected)}, got {source!r}")
    names = tensor_names(model, LAYOUTS[source])
    return {names[own]: tensor.detach() for own, tensor in model.state_dict().items()}


def _recognise(model: "EfficientNetFeatures", tensors: Mapping[str, Tensor], source: str | None) -> Layout:
    """The layout whose names for stem, head and classifier occur most among ``tensors``; ``source`` must agree."""
    matches = {name: len(end_names(model, layout) & tensors.keys()) for name, layout in LAYOUTS.items()}
    likeliest = max(matches, key=matches.__getitem__)
    if source is not None:
        if matches[likeliest] > matches[_SOURCES[source]]:
            raise ValueError(f"source: got {source!r}, but the weights have the names of {likeliest}")
        return LAYOUTS[_SOURCES[source]]
    if matches[likeliest] == 0:
        sample = ", ".join(list(tensors)[:3]) or "no tensors at all"
        raise ValueError(f"weights: expected the names of one of {', '.join(LAYOUTS)}, got {sample} …")
    return LAYOUTS[likeliest]


def _targets(model: "EfficientNetFeatures", layout: Layout, skipped: set[str]) -> dict[str, Tensor]:
    """The model's tensors by their names in ``layout``, without the ``skipped``."""
    state = model.state_dict()
    names = tensor_names(model, layout)
    return {theirs: state[own] for own, theirs in names.items() if theirs not in skipped}


def _check_fit(
    model: "EfficientNetFeatures", layout: Layout, targets: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> None:
    """Refuse ``given`` unless it has exactly the names and shapes of ``targets``, listing all that differs."""
    missing = [name for name in targets if name not in given and not name.endswith(".num_batches_tracked")]
    extra = [name for name in given if name not in targets]
    common = [name for name in given if name in targets]
    misshapen = [
        f"{name} (expected {tuple(targets[name].shape)}, got {tuple(given[name].shape)})"
        for name in common
        if targets[name].shape != given[name].shape
    ]
    # Copying these would fail halfway.
    unusable = [name for name in common if given[name].is_meta or given[name].layout != torch.strided]
    problems = {"missing": missing, "extra": extra, "wrong shape": misshapen, "without dense values": unusable}
    lines = [f"  {problem}: {', '.join(names)}" for problem, names in problems.items() if names]
    if not lines:
        return
    if any(name.startswith(f"{layout.classifier}.") for name in misshapen):
        lines.append("  (classifier=False leaves the classifier out, to fine-tune on other classes)")
    raise ValueError(
        f"weights, named as {layout.name} does, do not fit {model.name}; nothing loaded\n" + "\n".join(lines)
    )


def _adopt_conventions(model: "EfficientNetFeatures", layout: Layout, source: str | None) -> None:
    """Set the padding and eps that weights of this origin were trained with."""
    if layout.name == "effnet":
        return
    if layout.name == "torchvision":
        # The table's row: the model's own may have been changed by the tf_ prefix or an argument.
        row = VARIANTS.get(model.name.removeprefix(TF_PREFIX), model.variant)
        model.padding, model.bn_eps = "symmetric", row.bn_eps
        return
    tensorflow = layout.name == "efficientnet_pytorch" or source == "tf"
    if layout.name == "timm" and source is None:
        tensorflow = model.name.startswith(TF_PREFIX)
    model.padding, model.bn_eps = ("same", TF_BN_EPS) if tensorflow else ("symmetric", _TIMM_BN_EPS)
