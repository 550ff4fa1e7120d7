"""What stands behind the public operators: the CUDA kernels where that is asked for, and the CPU's own afterwards."""

from types import ModuleType

import pytest
import torch

from effnet_kernels.ops.registration import CPU_ONLY
from hostcuda.kernels import serving
from operators.axes import LAYOUTS
from operators.cases import CASES, Case
from operators.parity import Outcome, check_identical, evaluate
from operators.recording import operators_of_the_namespace


@pytest.fixture(scope="module", autouse=True)
def cuda_kernels() -> None:
    """None here, in place of the folder's: the tests say themselves from where to where."""


def launches_of(runtime: ModuleType, case: Case) -> tuple[Outcome, list[str]]:
    runtime.reset_launches()
    outcome = evaluate(case.call, case.tensors)
    return outcome, [record["kernel"] for record in runtime.launches()]


@pytest.mark.parametrize("operator", CASES)
def test_from_where_to_where(operator: str, runtime: ModuleType) -> None:
    case = CASES[operator]()
    before, launches = launches_of(runtime, case)
    assert launches == []
    for _ in range(2):
        with serving(runtime):
            assert launches_of(runtime, case)[1]
        after, launches = launches_of(runtime, case)
        assert launches == []
        check_identical(after, before)


def test_an_error_ends_it(runtime: ModuleType) -> None:
    with pytest.raises(KeyError), serving(runtime):
        raise KeyError
    assert launches_of(runtime, CASES["mbconv_core"]())[1] == []


def test_every_operator_has_a_kernel(runtime: ModuleType) -> None:
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith(f"{runtime.__name__}::")}
    assert {name.partition("::")[2] for name in names} == operators_of_the_namespace()
    served = {n.partition("::")[2] for n in names if torch._C._dispatch_has_kernel_for_dispatch_key(n, "CPU")}
    assert served == operators_of_the_namespace() - CPU_ONLY


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", CASES)
def test_float64_is_refused(operator: str, layout: str, runtime: ModuleType) -> None:
    case = CASES[operator](dtype=torch.float64, layout=layout)
    with serving(runtime):
        for gradient in (True, False):
            with pytest.raises(RuntimeError, match="float64 is computed on CPU only"):
                evaluate(case.call, case.tensors, gradient=gradient)
    assert runtime.launches() == []
