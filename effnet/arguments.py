"""Checks of the arguments of public functions: which argument, what came, what was expected."""

import math

from effnet.blocks import PADDING_RULES


def check_count(argument: str, value: object) -> None:
    """``value`` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{argument}: expected a positive integer, got {value!r}")


def check_number(argument: str, value: object, expected: str, lowest: float, highest: float) -> None:
    """``value`` is a finite number from ``lowest`` to ``highest``; ``expected`` says so in words."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not lowest <= value <= highest:  # type: ignore[arg-type, operator]
        raise ValueError(f"{argument}: expected {expected}, got {value!r}")


def check_bn_eps(value: object) -> None:
    check_number("bn_eps", value, "a non-negative number", 0.0, math.inf)


def check_rate(argument: str, value: object) -> None:
    """``value`` is the probability of dropping something, short of dropping everything."""
    check_number(argument, value, "a probability below 1", 0.0, math.nextafter(1.0, 0.0))


def check_padding(value: object) -> None:
    if value not in PADDING_RULES:
        raise ValueError(f"padding: expected one of {', '.join(PADDING_RULES)}, got {value!r}")


def check_flag(argument: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{argument}: expected True or False, got {value!r}")
