"""SyncBatchNorm, DDP and FSDP over gloo: two and four processes come to what one does with the whole batch."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

import distributed_checks
import effnet
import effnet_kernels.nn as knn


def outcomes_of(size: int, folder: Path) -> dict[str, str]:
    """What failed, by check, with ``size`` processes."""
    mp.spawn(distributed_checks.run_checks, (size, str(folder)), nprocs=size)
    return torch.load(folder / "0.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return outcomes_of(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return outcomes_of(4, tmp_path_factory.mktemp("four"))


@pytest.mark.parametrize("check", distributed_checks.checks(2))
def test_two_processes(check: str, two: dict[str, str]) -> None:
    assert not two[check], two[check]


@pytest.mark.parametrize("check", distributed_checks.checks(4))
def test_four_processes(check: str, four: dict[str, str]) -> None:
    assert not four[check], four[check]


def test_conversion_is_in_place_and_keeps_everything() -> None:
    model = effnet.create_model(distributed_checks.TINY, num_classes=5)
    parameters, keys = list(model.parameters()), list(model.state_dict())
    assert effnet.sync_batchnorm(model) is model
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert list(model.state_dict()) == keys
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(type(m) is knn.SyncBatchNorm2d for m in norms)
    effnet.sync_batchnorm(model)
    assert all(type(m) is knn.SyncBatchNorm2d for m in norms)
