"""The sides themselves: each computes the definition, in its layout, or says why it cannot."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch._inductor import config as inductor

import effnet_kernels as ek
from bench.sides import small_case
from effnet.bench.cases import (
    Case,
    Conditions,
    Mode,
    block_cases,
    model_cases,
    operator_cases,
    operator_shapes,
    places,
)
from effnet.bench.measure import Settings, measure
from effnet.bench.problem import LAYOUTS, Problem
from effnet.bench.sides import Compiled, Eager, Fused, Timm, TorchRunner, all_sides
from effnet.bench.timm_modules import timm_missing
from effnet.doctor.workload import OPERATORS
from effnet_kernels.backend import requested_backend

CPU = torch.device("cpu")
ONCE = Settings(rounds=1, visit_seconds=0.0)
CONDITIONS: tuple[tuple[Mode, str], ...] = (
    ("training", "float32"),
    ("inference", "float32"),
    ("training", "bfloat16"),
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small tensors are not worth splitting."""
    torch.set_num_threads(1)


@pytest.fixture
def runs(request: pytest.FixtureRequest) -> None:
    """The compiled operators are there."""
    if ek.backends()["cpu"] is not None:
        pytest.skip(ek.backends()["cpu"])


def tiny_block(**changes: Any) -> Case:
    (case,) = block_cases(Conditions((2,), ("float32",), ("training",)))
    return replace(case, image=7, shape=replace(case.shape, side=7), **changes)


def tiny_model(mode: Any, dtype: str = "float32", name: str = "efficientnet_lite0") -> Case:
    (case,) = model_cases(Conditions((2,), (dtype,), (mode,)), [name], 64)
    return case


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    "case",
    [
        *(small_case(operator, mode, dtype) for operator in OPERATORS for mode, dtype in CONDITIONS),
        tiny_block(),
        tiny_block(mode="inference", dtype="bfloat16"),
        tiny_model("training"),
        tiny_model("inference", "bfloat16"),
        tiny_model("inference", name="efficientnet_b0"),
    ],
    ids=lambda case: case.title,
)
def test_every_quick_side_computes_the_definition(case: Case) -> None:
    sides = [side for side in all_sides(CPU) if side.family in ("eager", "timm", "fused")]
    results = measure(case, sides, ONCE)
    assert [(r.side.name, r.status, r.reason) for r in results if r.status != "ok"] == []
    assert all(len(r.seconds) == 1 and r.seconds[0] > 0 for r in results)


@pytest.mark.parametrize("mode", ["training", "inference"])
def test_torch_compile_computes_the_definition(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[tuple[Any, ...]] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Any], **options: Any) -> Any:
        settings.append((inductor.freezing, inductor.cpp.threads))
        return aot_eager(module, inputs)

    # All but the code generator, which takes a minute where no compiled headers are kept.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    results = measure(small_case("mbconv_core", mode), [Compiled("nchw"), Compiled("channels_last")], ONCE)
    assert [(r.status, r.reason) for r in results] == [("ok", "")] * 2
    assert settings == [(mode == "inference", 1)] * 2


@pytest.mark.parametrize("family", ["onnxruntime", "openvino"])
def test_other_runtimes_compute_the_definition_or_say_what_is_missing(family: str) -> None:
    (side,) = (side for side in all_sides(CPU) if side.family == family)
    case = small_case("depthwise_conv_bn_act", "inference")
    (result,) = measure(case, [side], ONCE)
    if result.status == "missing":
        assert "is not installed: pip install 'effnet-kernels[bench]'" in result.reason
        pytest.skip(result.reason)
    assert (result.status, result.reason) == ("ok", "") and result.seconds


def test_reasons_of_sides_that_cannot_run() -> None:
    sides = {side.name: side for side in all_sides(CPU)}
    training, half = Problem(small_case()), Problem(small_case(mode="inference", dtype="bfloat16"))
    assert sides["onnxruntime"].missing(training) == "inference only"
    assert sides["openvino"].missing(training) == "inference only"
    assert sides["onnxruntime"].missing(half) == "its CPU provider does not compute in bfloat16"
    assert Fused("cuda", "nchw").missing(training) == "the cuda backend is not for cpu tensors"
    assert Fused("cpu", "nchw").missing(training) == ek.backends()["cpu"]
    assert Timm("nchw").missing(training) is None


def test_a_network_that_timm_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(tiny_model("inference"))
    assert problem.network is not None
    monkeypatch.setattr(problem.network, "name", "efficientnet_of_ones_own")
    assert timm_missing(problem) == "timm has no efficientnet_of_ones_own"


def test_both_layouts_of_every_backend_take_part() -> None:
    names = [side.name for side in all_sides(CPU)]
    assert names[:2] == ["eager nchw", "eager channels_last"] and len(names) == len(set(names))
    assert {"fused cpu nchw", "fused cpu channels_last", "compile nchw", "compile channels_last"} < set(names)
    gpu = {side.name for side in all_sides(torch.device("cuda:0"))}
    assert {f"fused {backend} {layout}" for backend in ("cuda", "triton") for layout in LAYOUTS} < gpu


@pytest.mark.usefixtures("runs")
def test_a_fused_side_runs_its_backend_in_its_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = ek.mbconv_core

    def spy(u: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append((requested_backend(), u.is_contiguous(memory_format=torch.channels_last)))
        return original(u, *args, **kwargs)

    monkeypatch.setattr(ek, "mbconv_core", spy)
    measure(small_case(), [Eager("nchw"), Fused("cpu", "channels_last")], ONCE)
    assert set(seen) == {("cpu", True)}
    assert requested_backend() == "auto"


def test_sides_do_not_share_what_they_change() -> None:
    problem = Problem(small_case())
    before = {name: t.clone() for name, t in problem.module.state_dict().items()}
    runner = Eager("nchw").build(problem)
    first = runner.outcome()
    for _ in range(3):
        runner.step()
    assert all(torch.equal(t, before[name]) for name, t in problem.module.state_dict().items())
    assert torch.equal(Eager("nchw").build(problem).outcome()["mean2"], first["mean2"])


def test_a_step_computes_every_gradient_and_keeps_none() -> None:
    problem = Problem(small_case())
    runner = Eager("nchw").build(problem)
    assert isinstance(runner, TorchRunner)
    first, again = runner.step(), runner.step()
    assert isinstance(first, tuple) and isinstance(again, tuple)
    assert len(first) == len(list(problem.module.parameters())) + 1
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(p.grad is None for p in runner.module.parameters())


def test_pictures_need_no_gradient_and_activations_do() -> None:
    assert not Problem(tiny_model("training")).own_inputs()[0].requires_grad
    assert Problem(small_case()).own_inputs()[0].requires_grad
    assert not Problem(small_case(mode="inference")).own_inputs()[0].requires_grad


def test_a_calibrated_network_keeps_its_signal() -> None:
    problem = Problem(tiny_model("inference", name="efficientnet_b0"))
    norms = [m for m in problem.module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.momentum == 0.1 for norm in norms)
    out = problem.expected["out"]
    assert 1e-2 < float(out.std()) < 1e2


def test_shapes_are_the_twelve_of_b0() -> None:
    found = [str(place.shape) for place in places()]
    assert len(found) == len(set(found)) == 12
    assert found[0] == "32@112 k3 s1" and found[-1] == "1152@7 k3 s1"
    assert len(operator_shapes("mbconv_core")) == len(operator_shapes("depthwise_conv_bn_act")) == 12
    assert [shape.image for shape in operator_shapes("squeeze_excite")] == [
        "32@112",
        "96@112",
        "144@56",
        "240@28",
        "480@14",
        "672@14",
        "1152@7",
    ]


def test_cases_travel_as_json() -> None:
    conditions = Conditions()
    for case in (*operator_cases(conditions), *block_cases(conditions), *model_cases(conditions)):
        assert Case.from_json(json.loads(json.dumps(case.to_json()))) == case


def test_titles_tell_cases_apart() -> None:
    conditions = Conditions(threads=(1, 2))
    cases = [*operator_cases(conditions), *block_cases(conditions), *model_cases(conditions)]
    assert len({case.title for case in cases}) == len(cases)
