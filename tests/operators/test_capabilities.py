"""Every instruction set that the library holds code for, each in a process of its own: the choice is made once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

VARIABLE = "EFFNET_KERNELS_CPU_CAPABILITY"
ORDER = ("baseline", "avx2", "avx512", "avx512_bf16")
TESTS = Path(__file__).parents[1]


def run(capability: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    if capability is not None:
        environment[VARIABLE] = capability
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TESTS), environment.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-m", "operators.capability_run"],
        cwd=TESTS,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("capability", ORDER)
def test_parity_on(capability: str) -> None:
    from effnet_kernels import _plan

    if capability not in _plan.facts()["cpu_capabilities"]:
        pytest.skip(f"the library holds no code for {capability}")
    result = run(capability)
    assert result.returncode == 0, result.stderr
    chosen = result.stdout.strip()
    # A processor without these instructions runs the best that it has instead, never one above the request.
    assert chosen in ORDER[: ORDER.index(capability) + 1]
    if VARIABLE not in os.environ and ORDER.index(capability) <= ORDER.index(_plan.cpu_capability()):
        assert chosen == capability


def test_an_unknown_capability_is_refused() -> None:
    result = run("avx10")
    assert result.returncode != 0
    assert f"{VARIABLE}: expected one of baseline, avx2, avx512, avx512_bf16, got 'avx10'" in result.stderr
