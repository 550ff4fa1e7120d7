"""Where there is no Triton there is nothing to compile."""

import os

import pytest

from triton_resources.toolkit import missing


@pytest.fixture(scope="session", autouse=True)
def triton() -> None:
    """Tests skip without Triton; in CI, where it is installed, they fail."""
    reason = missing()
    if reason is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
