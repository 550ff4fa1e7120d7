"""SyncBatchNorm, DDP and FSDP over gloo: two and four processes come to what one does with the whole batch."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm.layers
import torch
import torch.multiprocessing as mp
from torch import nn

import distributed_checks
import effnet
import effnet_kernels.nn as knn
from processes import forkserver


@pytest.mark.parametrize("size", [2, 4])
def test_processes_agree_with_one(size: int, tmp_path: Path) -> None:
    """All of ``distributed_checks`` in one start of ``size`` processes."""
    start_method = forkserver().get_start_method()
    mp.start_processes(distributed_checks.run_checks, (size, str(tmp_path)), nprocs=size, start_method=start_method)
    outcomes = torch.load(tmp_path / "0.pt")
    assert outcomes.keys() == distributed_checks.checks(size).keys()
    failed = [f"{check}: {failure}" for check, failure in outcomes.items() if failure]
    assert not failed, "\n".join(failed)


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


def test_other_batch_norms_are_refused_before_any_change() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), timm.layers.BatchNormAct2d(4))
    with pytest.raises(TypeError, match=r"model: expected every BatchNorm to be one of BatchNorm2d, .* at '1'"):
        effnet.sync_batchnorm(model)
    assert type(model[0]) is nn.BatchNorm2d
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got str"):
        effnet.sync_batchnorm("model")


@pytest.mark.parametrize("convert", distributed_checks.CONVERSIONS.values(), ids=distributed_checks.CONVERSIONS)
@pytest.mark.parametrize("fused", [True, False], ids=("fused", "unfused"))
def test_one_process_runs_as_before(fused: bool, convert: Callable[[nn.Module], nn.Module]) -> None:
    """Without a process group a converted network is what it was, to the last bit, in training and in evaluation."""
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    results = []
    for converted in (False, True):
        torch.manual_seed(0)
        model = effnet.create_model(distributed_checks.TINY, num_classes=5, fused=fused)
        model = convert(model) if converted else model
        logits = model(x)
        logits.sum().backward()
        model.eval()
        with torch.no_grad():
            evaluated = model(x)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append((logits, evaluated, *model.buffers(), *gradients))
    assert all(torch.equal(t, expected) for t, expected in zip(*results, strict=True))


def test_settings_of_a_converted_network() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(effnet.create_model(distributed_checks.TINY, num_classes=5))
    assert isinstance(model, effnet.EfficientNet)
    model.bn_eps = 1e-2
    assert {m.eps for m in model.modules() if isinstance(m, nn.SyncBatchNorm)} == {1e-2}
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.zeros(1, 3, 32, 32))
