"""The switch between fused operators and their plain PyTorch definition.

A block's own setting decides where it has one, else the process default ``effnet.fused``. Neither touches
parameters, buffers or random numbers, so a network can be switched at any moment.

Other libraries' models that were given to ``effnet.fuse`` follow the process default once it has been set; until then
they run fused, which is what they were given for.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import effnet
from effnet.prepared import ForgetsPrepared


def check_fused(value: object, *, optional: bool) -> None:
    """Refuse what is not True or False (or None where ``optional``)."""
    if isinstance(value, bool) or (optional and value is None):
        return
    expected = "True, False or None" if optional else "True or False"
    raise TypeError(f"fused: expected {expected}, got {value!r}")


@contextmanager
def use_fused(fused: bool) -> Iterator[None]:
    """Set the process default ``effnet.fused`` inside a ``with`` block, and restore it on the way out.

    A model with ``model.fused`` set to True or False keeps to that.

    Raises:
        TypeError: ``fused`` is not a bool.
    """
    before, was_set = effnet.fused, effnet._fused_is_set
    effnet.fused = fused
    try:
        yield
    finally:
        effnet.fused = before
        effnet._fused_is_set = was_set


def fuses_others() -> bool:
    """Whether other libraries' models that were given to ``effnet.fuse`` run fused: until somebody says otherwise."""
    return effnet.fused or not effnet._fused_is_set


class Switchable(ForgetsPrepared):
    """A module whose forward pass runs fused or unfused."""

    _fused: bool | None = None

    @property
    def fused(self) -> bool | None:
        """True or False for this module and all inside it, None to follow ``effnet.fused``."""
        return self._fused

    @fused.setter
    def fused(self, value: bool | None) -> None:
        check_fused(value, optional=True)
        for module in self.modules():
            if isinstance(module, Switchable):
                module._fused = value

    @property
    def runs_fused(self) -> bool:
        """What the next forward pass will do."""
        return effnet.fused if self._fused is None else self._fused
