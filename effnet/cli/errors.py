"""From a refused option to typer's exit code 2."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from effnet.errors import OptionError

REFUSED = 2


@contextmanager
def as_bad_parameter(*arguments: str) -> Iterator[None]:
    """Turn an :class:`OptionError` into typer's error that names the option; ``arguments`` are given without dashes."""
    try:
        yield
    except OptionError as error:
        if int(os.environ.get("RANK", 0)) > 0:
            # Of the processes that torchrun started, the first one says it.
            raise typer.Exit(REFUSED) from error
        hint = error.option.upper() if error.option in arguments else "--" + error.option.replace("_", "-")
        raise typer.BadParameter(error.reason, param_hint=hint) from error
