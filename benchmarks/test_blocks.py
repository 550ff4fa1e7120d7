"""An MBConv block from the middle of EfficientNet-B0."""

import pytest

from conftest import CLOCK, Replay
from effnet.bench.cases import Case

KIND = "block"
pytestmark = pytest.mark.benchmark(timer=CLOCK)


def test_training(case: Case, side: str, replay: Replay) -> None:
    replay(case, side)


def test_inference(case: Case, side: str, replay: Replay) -> None:
    replay(case, side)
