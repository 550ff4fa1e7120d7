"""What the build decides to make of a toolchain, what it records, and the package without any compiled library."""

import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import effnet_kernels as ek
from effnet_kernels import backend
from effnet_kernels.build import BuildFacts, build_facts, describe, missing_reason
from processes import run_python

ROOT = Path(__file__).resolve().parents[1]
CAPABILITIES = ("baseline", "avx2", "avx512", "avx512_bf16")


def load_setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("effnet_kernels_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


build = load_setup()

COMPLETE = build.Toolchain(
    compiler="c++",
    compiler_problem=None,
    python_headers_problem=None,
    torch_version="2.14.1+cu130",
    torch_cuda="13.0",
    cuda_home=Path("/usr/local/cuda"),
    nvcc_problem=None,
    nvcc_version="13.0",
)
NO_NVCC = replace(COMPLETE, cuda_home=None, nvcc_problem="nvcc was not found", nvcc_version=None)
NO_COMPILER = replace(COMPLETE, compiler_problem="no C++ compiler: c++")
CPU_TORCH = replace(COMPLETE, torch_version="2.14.1+cpu", torch_cuda=None)
OLD_NVCC = replace(COMPLETE, nvcc_version="12.8")

WITHOUT_CUDA = {
    "no nvcc": (NO_NVCC, "nvcc was not found"),
    "no compiler": (NO_COMPILER, "no C++ compiler: c++"),
    "a CPU build of torch": (CPU_TORCH, "torch 2.14.1+cpu is not a CUDA build"),
    "an nvcc of another major version": (OLD_NVCC, "nvcc is of CUDA 12.8, torch 2.14.1+cu130 of 13.0"),
}


def test_everything_is_built_where_everything_is_there() -> None:
    assert build.decide({}, COMPLETE) == {"_C": None, "_C_cuda": None, "_autograd": None, "_plan": None, "_watch": None}
    assert build.decide({"EFFNET_KERNELS_CUDA": "1"}, COMPLETE)["_C_cuda"] is None


def test_a_minor_version_of_nvcc_does_not_matter() -> None:
    assert build.decide({}, replace(COMPLETE, nvcc_version="13.2"))["_C_cuda"] is None


@pytest.mark.parametrize("case", WITHOUT_CUDA)
def test_without_cuda_the_reason_is_given(case: str) -> None:
    toolchain, reason = WITHOUT_CUDA[case]
    decision = build.decide({}, toolchain)
    assert decision["_C_cuda"] == reason
    assert decision["_C"] == toolchain.compiler_problem


@pytest.mark.parametrize("case", WITHOUT_CUDA)
def test_forcing_cuda_stops_with_what_is_missing(case: str) -> None:
    toolchain, reason = WITHOUT_CUDA[case]
    with pytest.raises(build.BuildError) as caught:
        build.decide({"EFFNET_KERNELS_CUDA": "1"}, toolchain)
    expected = f"effnet-kernels: EFFNET_KERNELS_CUDA=1, but the CUDA library cannot be built: {reason}"
    assert str(caught.value) == expected


def test_cuda_can_be_left_out() -> None:
    decision = build.decide({"EFFNET_KERNELS_CUDA": "0"}, COMPLETE)
    assert decision == {
        "_C": None,
        "_C_cuda": "EFFNET_KERNELS_CUDA=0",
        "_autograd": None,
        "_plan": None,
        "_watch": None,
    }


@pytest.mark.parametrize("value", ["yes", "true", "2", " 1"])
def test_other_values_of_the_switch_are_refused(value: str) -> None:
    with pytest.raises(build.BuildError, match=r"EFFNET_KERNELS_CUDA: expected 0 or 1"):
        build.decide({"EFFNET_KERNELS_CUDA": value}, COMPLETE)


def test_without_a_compiler_nothing_is_built_and_the_report_says_so() -> None:
    decision = build.decide({}, NO_COMPILER)
    assert set(decision.values()) == {"no C++ compiler: c++"}
    assert build.extension_modules(decision, NO_COMPILER) == []
    assert "_C: NOT built: no C++ compiler: c++" in build.report(decision)
    assert "Only the plain-PyTorch reference backend" in build.report(decision)


def test_without_python_headers_only_python_modules_are_left_out() -> None:
    decision = build.decide({}, replace(COMPLETE, python_headers_problem="there is no Python.h"))
    missing = "there is no Python.h"
    assert decision == {"_C": None, "_C_cuda": None, "_autograd": None, "_plan": missing, "_watch": missing}


def test_architectures_are_those_that_nvcc_knows_and_ptx_of_the_newest() -> None:
    flags = build.architecture_flags({}, [75, 80, 86, 87, 90])
    binary = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in (75, 80, 86, 90)]
    assert flags == [*binary, "-gencode=arch=compute_90,code=compute_90"]
    with pytest.raises(build.BuildError, match="nvcc knows none of the architectures 75, 80"):
        build.architecture_flags({}, [50, 60])


def test_torch_cuda_arch_list_is_left_to_torch() -> None:
    assert build.architecture_flags({"TORCH_CUDA_ARCH_LIST": "9.0+PTX"}, [75, 80, 90]) == []


def test_the_toolkit_is_found_behind_a_wrapper_of_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit, wrappers = tmp_path / "toolkit/bin", tmp_path / "wrappers"
    for folder in (toolkit, wrappers):
        folder.mkdir(parents=True)
        nvcc = folder / "nvcc"
        nvcc.write_text(f"#!/bin/sh\necho '#$ _SPACE_= '\necho '#$ TOP={toolkit}/..' >&2\n")
        nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(wrappers), prepend=os.pathsep)
    assert build._find_cuda_home({}) == (tmp_path / "toolkit", None)


def test_a_wrong_cuda_home_is_named(tmp_path: Path) -> None:
    home, problem = build._find_cuda_home({"CUDA_HOME": str(tmp_path)})
    assert home is None
    assert problem == f"there is no bin/nvcc in CUDA_HOME={tmp_path}"


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    assert build._compiler_problem("no-such-compiler") == "no C++ compiler: no-such-compiler: No such file or directory"
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'error: unknown option -std=c++20' >&2\nexit 1\n")
    broken.chmod(0o755)
    expected = f"{broken} cannot build a C++20 library: error: unknown option -std=c++20"
    assert build._compiler_problem(str(broken)) == expected


@pytest.fixture(scope="module")
def facts() -> BuildFacts:
    try:
        return build_facts()
    except RuntimeError as error:
        pytest.skip(str(error))


def test_facts_agree_with_the_package_and_with_torch(facts: BuildFacts) -> None:
    assert facts.version == ek.__version__
    assert tuple(map(int, facts.torch_version.split(".")[:2])) >= (2, 10)
    assert facts.threads == torch.get_num_threads()
    assert facts.processors >= 1


def test_the_capability_is_one_that_was_compiled(facts: BuildFacts) -> None:
    assert facts.cpu_capabilities == CAPABILITIES[: len(facts.cpu_capabilities)]
    assert facts.cpu_capability in facts.cpu_capabilities


def test_the_cuda_library_and_its_facts_come_together(facts: BuildFacts) -> None:
    if facts.nvcc_version is None:
        assert facts.cuda_architectures == ()
        assert "_C_cuda was not built" in describe() or torch.version.cuda is None
        pytest.skip(f"no CUDA library: {missing_reason('_C_cuda')}")
    assert facts.torch_cuda_version is not None
    assert facts.cuda_architectures
    assert f"nvcc {facts.nvcc_version}" in describe()
    if torch.version.cuda is None:
        assert backend.cuda_library_reason() == "this torch is not a CUDA build"
    else:
        assert backend.cuda_library_reason() is None


CAPABILITY = "from effnet_kernels.build import build_facts; print(build_facts().cpu_capability)"


@pytest.mark.parametrize("asked", CAPABILITIES)
def test_the_capability_can_only_be_lowered(facts: BuildFacts, asked: str, tmp_path: Path) -> None:
    best = run_python(CAPABILITY, tmp_path).stdout.strip()
    got = run_python(CAPABILITY, tmp_path, EFFNET_KERNELS_CPU_CAPABILITY=asked).stdout.strip()
    assert got == min(asked, best, key=CAPABILITIES.index)


def test_an_unknown_capability_is_refused(facts: BuildFacts, tmp_path: Path) -> None:
    result = run_python(CAPABILITY, tmp_path, EFFNET_KERNELS_CPU_CAPABILITY="sse9")
    assert result.returncode != 0
    expected = "EFFNET_KERNELS_CPU_CAPABILITY: expected one of baseline, avx2, avx512, avx512_bf16, got 'sse9'"
    assert expected in result.stderr


REFERENCE_ONLY = """
import json, torch, effnet_kernels as ek
x = torch.randn(2, 3, 4, 5)
out = ek.batch_norm_act(x, None, None, None, None, activation="relu")
torch.testing.assert_close(out, torch.relu(torch.nn.functional.batch_norm(x, None, None, training=True)))
assert ek.__file__.startswith(FOLDER), ek.__file__
print(json.dumps(dict(ek.backends())))
"""


def backends_in(folder: Path) -> dict[str, str | None]:
    """``effnet_kernels.backends()`` of the package in ``folder``, after a call to one of its operators."""
    result = run_python(f"FOLDER = {str(folder)!r}\n{REFERENCE_ONLY}", folder, PYTHONPATH=str(folder))
    assert result.returncode == 0, result.stderr
    table: dict[str, str | None] = json.loads(result.stdout)
    return table


def test_bare_sources_work_on_the_reference_and_say_why(tmp_path: Path) -> None:
    generated = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    shutil.copytree(ROOT / "effnet_kernels", tmp_path / "effnet_kernels", ignore=generated)
    table = backends_in(tmp_path)
    assert table["reference"] is None
    reason = "was not built: these sources were not installed (pip install .)"
    assert table["cpu"] == f"_C {reason}"
    code = "from effnet_kernels.build import describe; print(describe())"
    assert run_python(code, tmp_path, PYTHONPATH=str(tmp_path)).stdout == f"no build facts: _plan {reason}\n"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """What a build needs of the checkout, alone in a folder."""
    folder = tmp_path / "sources"
    for name in ("effnet", "effnet_kernels", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "_build.json", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, folder)
    return folder


def run_build(sources: Path, library_folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "build", "--build-lib", str(library_folder)],
        cwd=sources,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_compiler_the_build_leaves_the_libraries_out_and_keeps_the_reason(
    sources: Path, tmp_path: Path
) -> None:
    built = tmp_path / "built"
    stale = built / "effnet_kernels/_C_cuda.abi3.so"
    stale.parent.mkdir(parents=True)
    stale.touch()
    result = run_build(sources, built, CXX="no-such-compiler", EFFNET_KERNELS_CUDA="")
    assert result.returncode == 0, result.stderr
    reason = "no C++ compiler: no-such-compiler: No such file or directory"
    assert f"_C: NOT built: {reason}" in result.stderr
    assert not list(built.rglob("*.so"))
    table = backends_in(built)
    assert table["cpu"] == f"_C was not built: {reason}"
    assert table["reference"] is None


def test_a_forced_cuda_build_stops_with_what_is_missing(sources: Path, tmp_path: Path) -> None:
    result = run_build(sources, tmp_path / "built", CUDA_HOME=str(tmp_path), EFFNET_KERNELS_CUDA="1")
    assert result.returncode == 1
    expected = "is not a CUDA build" if torch.version.cuda is None else f"there is no bin/nvcc in CUDA_HOME={tmp_path}"
    assert f"EFFNET_KERNELS_CUDA=1, but the CUDA library cannot be built: {expected}" in result.stderr.replace(
        f"torch {torch.__version__} ", ""
    )
