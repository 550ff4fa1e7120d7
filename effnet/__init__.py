"""EfficientNet B0–B8, L2, Lite and V2, trained and run with fused operators.

``effnet.fused`` is the process default of the switch between the fused operators and their plain PyTorch definition.
"""

import sys
from types import ModuleType

fused: bool = False
_fused_is_set = False

# Ahead of the imports below, whose modules read ``effnet.fused``.
from effnet.config import Scaling, Variant, compound_scaling, list_models, scaled_variant  # noqa: E402
from effnet.fusion import FusionReport, fuse, unfuse  # noqa: E402
from effnet.model import EfficientNet, EfficientNetFeatures, create_model  # noqa: E402
from effnet.switch import check_fused, use_fused  # noqa: E402
from effnet.weights import export_weights, load_weights  # noqa: E402
from effnet_kernels.nn import sync_batchnorm  # noqa: E402


class _Package(ModuleType):
    """This package, refusing a value of ``fused`` where it is set rather than where it is first used."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "fused":
            check_fused(value, optional=False)
            super().__setattr__("_fused_is_set", True)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

__all__ = [
    "EfficientNet",
    "EfficientNetFeatures",
    "FusionReport",
    "Scaling",
    "Variant",
    "compound_scaling",
    "create_model",
    "export_weights",
    "fuse",
    "fused",
    "list_models",
    "load_weights",
    "scaled_variant",
    "sync_batchnorm",
    "unfuse",
    "use_fused",
]
