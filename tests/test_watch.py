"""Whether dictionaries and tensors are still as they were: both implementations, the same answers."""

import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from effnet_kernels.build import missing_reason
from effnet_kernels.watch import PythonWatch, Watch, watch

IMPLEMENTATIONS: dict[str, Callable[..., Watch]] = {"python": PythonWatch}
try:
    from effnet_kernels import _watch

    IMPLEMENTATIONS["compiled"] = _watch.Watch
except ImportError:
    pass


@pytest.fixture(params=["python", "compiled"])
def implementation(request: pytest.FixtureRequest) -> Callable[..., Watch]:
    if request.param not in IMPLEMENTATIONS:
        pytest.skip(missing_reason("_watch"))
    return IMPLEMENTATIONS[request.param]


class Scene:
    """Something to watch: three places, one of which is empty, an ordered dictionary, and two tensors."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {"eps": 1e-3, "training": False, "rule": "same"}
        self.hooks: OrderedDict[int, Any] = OrderedDict({1: print})
        self.tensors = [torch.ones(3), torch.zeros(2, 2)]

    def watched_by(self, implementation: Callable[..., Watch]) -> Watch:
        places = [(self.settings, "eps"), (self.settings, "training"), (self.settings, "bias")]
        return implementation(places, [self.hooks], self.tensors)


def set_data(tensor: Tensor) -> None:
    tensor.data = torch.ones(3)


CHANGES: dict[str, Callable[[Scene], Any]] = {
    "a value": lambda scene: scene.settings.update(training=True),
    "an equal value that is another object": lambda scene: scene.settings.update(eps=float("1e-3")),
    "a value that was not there": lambda scene: scene.settings.update(bias=0.0),
    "no value any more": lambda scene: scene.settings.pop("eps"),
    "a dictionary that has grown": lambda scene: scene.hooks.update({2: print}),
    "a dictionary that has shrunk": lambda scene: scene.hooks.popitem(),
    "a tensor written to": lambda scene: scene.tensors[1].add_(1),
    "a tensor in other memory": lambda scene: set_data(scene.tensors[0]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(implementation: Callable[..., Watch], change: str) -> None:
    scene = Scene()
    seen = scene.watched_by(implementation)
    assert seen.unchanged() and seen.unchanged()
    CHANGES[change](scene)
    assert not seen.unchanged()
    assert scene.watched_by(implementation).unchanged()


def test_what_is_not_watched_does_not_count(implementation: Callable[..., Watch]) -> None:
    scene = Scene()
    seen = scene.watched_by(implementation)
    scene.settings.update(rule="symmetric", more=1)
    scene.hooks[1] = repr
    scene.tensors[0].sum()
    assert seen.unchanged()


def test_nothing_to_watch_is_never_changed(implementation: Callable[..., Watch]) -> None:
    assert implementation([], [], []).unchanged()


def test_what_is_watched_lives_as_long_as_its_watch(implementation: Callable[..., Watch]) -> None:
    scene = Scene()
    counted = [scene.settings, scene.tensors[0]]
    before = [sys.getrefcount(each) for each in counted]
    seen = scene.watched_by(implementation)
    assert seen.unchanged()
    del seen
    assert [sys.getrefcount(each) for each in counted] == before


def test_an_error_of_a_tensor_is_raised(implementation: Callable[..., Watch]) -> None:
    with torch.inference_mode():
        uncounted = torch.ones(2)
    with pytest.raises(RuntimeError, match="Inference tensors do not track version counter"):
        implementation([], [], [uncounted])


def test_the_compiled_one_is_taken_where_there_is_one() -> None:
    assert type(watch([], [], [])) is IMPLEMENTATIONS.get("compiled", PythonWatch)
