"""Optimisers and learning-rate schedules: the paper's recipe and AdamW, as rows of a table."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

# Tan and Le 2019 (arXiv 1905.11946), section 5.2, and the authors' code.
PAPER_DECAY = 0.97
PAPER_DECAY_EPOCHS = 2.4


@dataclass(frozen=True)
class Defaults:
    """What an optimiser is run with where the user names nothing else.

    ``lr`` is for ``lr_batch_size`` and scales linearly with the batch. ``bn_momentum`` and ``bn_eps`` of None leave
    the variant's own.
    """

    lr: float
    lr_batch_size: int
    weight_decay: float
    ema_decay: float
    warmup_epochs: float
    schedule: str
    bn_momentum: float | None = None
    bn_eps: float | None = None


OPTIMIZERS: Mapping[str, Defaults] = MappingProxyType(
    {
        "adamw": Defaults(2e-3, 64, 0.05, 0.99, 2, "cosine"),
        # BatchNorm momentum 0.99 and epsilon 1e-3 in TensorFlow's convention.
        "rmsprop": Defaults(0.256, 4096, 1e-5, 0.9999, 5, "exponential", bn_momentum=0.01, bn_eps=1e-3),
    }
)
"""What ``--optimizer`` may name, with its defaults."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights that decay, and those that do not: biases and BatchNorm's γ and β."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.dim() > 1]
    kept = [parameter for parameter in trained if parameter.dim() <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def build_optimizer(name: str, model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """AdamW, or RMSProp as TensorFlow defines it: decay 0.9, momentum 0.9, ε = 1e-3 inside the square root."""
    groups = parameter_groups(model, weight_decay)
    if name == "adamw":
        # β2 of 0.999 remembers a thousand steps, which is most of a short run, its noisy start included.
        return AdamW(groups, lr=lr, betas=(0.9, 0.99))
    from timm.optim.rmsprop_tf import RMSpropTF

    return RMSpropTF(groups, lr=lr, alpha=0.9, momentum=0.9, eps=1e-3)


def _constant(_epoch: float, _epochs: int, _warmup: float) -> float:
    return 1.0


def _cosine(epoch: float, epochs: int, warmup: float) -> float:
    progress = (epoch - warmup) / max(epochs - warmup, 1e-9)
    return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def _exponential(epoch: float, _epochs: int, _warmup: float) -> float:
    """×0.97 every 2.4 epochs in steps, counted from the start of the warm-up, as in the authors' code."""
    return PAPER_DECAY ** math.floor(epoch / PAPER_DECAY_EPOCHS)


SCHEDULES: Mapping[str, Callable[[float, int, float], float]] = MappingProxyType(
    {"cosine": _cosine, "exponential": _exponential, "constant": _constant}
)
"""What ``--schedule`` may name: the factor of the learning rate at (epoch, epochs, warm-up epochs)."""


def build_schedule(
    name: str, optimizer: Optimizer, *, steps_per_epoch: int, epochs: int, warmup_epochs: float
) -> LambdaLR:
    """A linear warm-up, then the named decay; stepped after every batch."""
    decay = SCHEDULES[name]

    def factor(step: int) -> float:
        epoch = step / steps_per_epoch
        if epoch < warmup_epochs:
            return (step + 1) / (warmup_epochs * steps_per_epoch)
        return decay(epoch, epochs, warmup_epochs)

    return LambdaLR(optimizer, factor)


def scaled_learning_rate(defaults: Defaults, batch_size: int) -> float:
    """The default learning rate at ``batch_size`` images per step, all devices together."""
    return defaults.lr * batch_size / defaults.lr_batch_size
