"""What the tests of bad input share: the compiled backend, memory full of NaN, and how many examples are tried.

The examples are the same in every run. ``EFFNET_ADVERSARIAL_EXAMPLES=100000`` tries so many, other ones each time.
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis.database import InMemoryExampleDatabase

from operators.conftest import compiled_backend, poisoned_memory

__all__ = ["compiled_backend", "poisoned_memory"]

examples = int(os.environ.get("EFFNET_ADVERSARIAL_EXAMPLES", "0"))
quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=int(os.environ.get("EFFNET_ADVERSARIAL_FIXED", "300")),
    suppress_health_check=quiet,
)
settings.register_profile(
    "long",
    deadline=None,
    database=InMemoryExampleDatabase(),
    max_examples=max(examples, 1),
    suppress_health_check=quiet,
)
settings.load_profile("long" if examples else "fixed")
