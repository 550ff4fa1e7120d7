"""The halves of synchronised operators."""

from operators.test_synchronised import test_halves  # noqa: F401
