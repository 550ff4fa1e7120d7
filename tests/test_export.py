"""``torch.export`` and AOTInductor of whole fused networks: saved, loaded, and run at any batch size."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import effnet
import effnet_kernels as ek
from effnet.config import Stage
from networks import SMALL, agree, images, small
from processes import run_python

F64 = torch.float64
BATCH = ({0: torch.export.Dim("batch")},)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    if ek.backends()["cpu"] is not None:
        pytest.skip(f"no cpu backend: {ek.backends()['cpu']}")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def saved_and_loaded(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def operators_of(program: torch.export.ExportedProgram) -> set[str]:
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    return {t._opname for t in targets if isinstance(t, torch._ops.OpOverload) and t.namespace == "effnet_kernels"}


@pytest.mark.parametrize(
    ("strict", "gradients"),
    [(False, True), (False, False), (True, False)],
    ids=("non_strict-gradients", "non_strict-no_grad", "strict-no_grad"),
)
def test_evaluation(strict: bool, gradients: bool) -> None:
    model = small(dtype=F64).eval()
    with torch.set_grad_enabled(gradients):
        program = torch.export.export(model, (images(dtype=F64),), dynamic_shapes=BATCH, strict=strict)
        loaded = saved_and_loaded(program)
        assert ("mbconv" if gradients else "mbconv_core_inference") in operators_of(loaded)
        for batch in (3, 1, 6):
            agree(loaded.module()(images(batch, dtype=F64)), model(images(batch, dtype=F64)))


@pytest.mark.parametrize("strict", [False, True], ids=("non_strict", "strict"))
def test_training(strict: bool) -> None:
    """The program counts batches, moves the statistics, and has the network's gradients."""
    model = small(dtype=F64, dropout=0.0, drop_connect=0.0)
    program = torch.export.export(model, (images(dtype=F64),), dynamic_shapes=BATCH, strict=strict)
    loaded = saved_and_loaded(program).module()
    for batch in (2, 5):
        x = images(batch, dtype=F64)
        for run in (model, loaded):
            run(x).square().sum().backward()
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys() and int(state["stem.bn.num_batches_tracked"]) == 2
    for name, t in model.state_dict().items():
        agree(state[name], t)
    parameters = dict(loaded.named_parameters())
    for name, p in model.named_parameters():
        agree(parameters[name].grad, p.grad)


def test_unfused_is_portable() -> None:
    """The way to a program without this package's operators."""
    model = small(fused=False).eval()
    assert not operators_of(torch.export.export(model, (images(),)))


def test_aot_inductor_in_a_fresh_process(tmp_path: Path) -> None:
    """The package runs where ``effnet_kernels`` was imported, which registers the operators; ``effnet`` need not be."""
    one_block = replace(SMALL, stages=(Stage("mbconv", 3, 2, 3, 8, 1),))
    model = effnet.create_model(one_block, num_classes=5, fused=True).eval()
    with torch.no_grad():
        program = torch.export.export(model, (images(),), dynamic_shapes=BATCH)
        torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "network.pt2"))
        torch.save([(images(batch), model(images(batch))) for batch in (1, 5)], tmp_path / "expected.pt")
    code = """
import sys, torch, effnet_kernels
run = torch._inductor.aoti_load_package("network.pt2")
for x, expected in torch.load("expected.pt"):
    torch.testing.assert_close(run(x), expected, rtol=1e-4, atol=1e-6)
assert "effnet" not in sys.modules
print("equal logits")
"""
    done = run_python(code, tmp_path)
    assert done.stdout.strip().endswith("equal logits"), done.stderr
