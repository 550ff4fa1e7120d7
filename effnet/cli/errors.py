"""From a refused option to typer's exit code 2."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from effnet.errors import OptionError


@contextmanager
def as_bad_parameter() -> Iterator[None]:
    """Turn an :class:`OptionError` into typer's error that names the option."""
    try:
        yield
    except OptionError as error:
        hint = "--" + error.option.replace("_", "-")
        raise typer.BadParameter(error.reason, param_hint=hint) from error
