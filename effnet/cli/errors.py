"""From a refused option to typer's exit code 2."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from effnet.errors import OptionError


@contextmanager
def as_bad_parameter(*arguments: str) -> Iterator[None]:
    """Turn an :class:`OptionError` into typer's error that names the option; ``arguments`` are given without dashes."""
    try:
        yield
    except OptionError as error:
        hint = error.option.upper() if error.option in arguments else "--" + error.option.replace("_", "-")
        raise typer.BadParameter(error.reason, param_hint=hint) from error
