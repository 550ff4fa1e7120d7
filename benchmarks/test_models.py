"""Whole networks: B0, B4, Lite0 and V2-S."""

import pytest

from conftest import CLOCK, Replay
from effnet.bench.cases import Case

KIND = "model"
pytestmark = pytest.mark.benchmark(timer=CLOCK)


def test_training(case: Case, side: str, replay: Replay) -> None:
    replay(case, side)


def test_inference(case: Case, side: str, replay: Replay) -> None:
    replay(case, side)
