"""Reading the checkpoint of an earlier run, which may be damaged, of something else, or made to do harm."""

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from effnet.errors import OptionError
from effnet.weights.archive import check_archive

HISTORY_STATE = "History"
"""Under which name ``effnet.history.History`` keeps the epochs: that of its class."""

WHAT_RUNNING_ON_TAKES = {
    "epoch": int,
    "hyper_parameters": Mapping,
    "state_dict": Mapping,
    "optimizer_states": Sequence,
    "lr_schedulers": Sequence,
    "loops": Mapping,
    "callbacks": Mapping,
}


def refused(path: Path, reason: object) -> OptionError:
    return OptionError("resume", "a checkpoint of `effnet train`", f"{path}: {reason}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What ``path`` holds; nothing in it is executed.

    Raises:
        OptionError: it is damaged, holds more than tensors and plain values, or lacks what running on takes.
    """
    try:
        check_archive(path)
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        # A damaged pickle stops its reader anywhere, with whatever comes of it.
        raise refused(path, error) from error
    if not isinstance(saved, dict):
        raise refused(path, f"holds a {type(saved).__name__}")
    for name, kind in WHAT_RUNNING_ON_TAKES.items():
        if not isinstance(saved.get(name), kind):
            raise refused(path, f"{name} is {'missing' if name not in saved else type(saved[name]).__name__}")
    return saved


def check_fits(saved: Mapping[str, Any], model: nn.Module, optimizer: Optimizer, path: Path) -> None:
    """That the tensors of ``saved`` are those of ``model`` and of ``optimizer`` over its parameters.

    Raises:
        OptionError: names the first that is not.
    """
    expected = model.state_dict()
    for part in ("state_dict", "current_model_state"):
        if part in saved:
            _check_tensors(saved[part], expected, f"{path}: {part}")
    if len(saved["lr_schedulers"]) != 1:
        raise refused(path, "the learning rate's schedule is missing")
    history = saved["callbacks"].get(HISTORY_STATE)
    if not isinstance(history, Mapping) or len(history.get("epochs", ())) != saved["epoch"] + 1:
        raise refused(path, f"the history is not of {saved['epoch'] + 1} epochs")
    states = [state.get("state") if isinstance(state, Mapping) else None for state in saved["optimizer_states"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if len(states) != 1 or not isinstance(states[0], Mapping) or set(states[0]) != set(range(len(parameters))):
        raise refused(path, "the optimiser's state is not of the network's parameters")
    names = _state_names(optimizer)
    for number, parameter in enumerate(parameters):
        values = states[0][number]
        if not isinstance(values, Mapping) or set(values) != names:
            raise refused(path, f"expected {', '.join(sorted(names))} of the optimiser for parameter {number}")
        for name, value in values.items():
            if isinstance(value, Tensor) and value.dim() > 0 and value.shape != parameter.shape:
                raise refused(
                    path, f"{name} of parameter {number} is {tuple(value.shape)}, not {tuple(parameter.shape)}"
                )


def _state_names(optimizer: Optimizer) -> set[str]:
    """What ``optimizer`` keeps of a parameter, found on one of a single value."""
    toy = copy.copy(optimizer)
    parameter = torch.zeros(1, requires_grad=True)
    parameter.grad = torch.zeros(1)
    toy.param_groups = [{**optimizer.param_groups[0], "params": [parameter]}]
    toy.state = defaultdict(dict)
    toy.step()
    return set(toy.state[parameter])


def _check_tensors(saved: object, expected: Mapping[str, Tensor], where: str) -> None:
    tensors = saved if isinstance(saved, Mapping) else {}
    if different := sorted(set(tensors) ^ set(expected)):
        raise refused(Path(where), f"{different[0]} is only in {'it' if different[0] in tensors else 'the network'}")
    for name, wanted in expected.items():
        t = tensors[name]
        if not isinstance(t, Tensor) or t.shape != wanted.shape or t.dtype != wanted.dtype:
            got = f"{t.dtype} {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
            raise refused(Path(where), f"{name} is {got}, of the network {wanted.dtype} {tuple(wanted.shape)}")
