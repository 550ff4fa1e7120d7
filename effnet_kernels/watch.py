"""Whether dictionaries and tensors are still as they were, which is asked before every call of prepared weights.

Answered in C++ where ``effnet_kernels._watch`` was built, else in Python; the answers are the same.
"""

from collections.abc import Callable
from operator import attrgetter, is_
from typing import Any, Protocol

from torch import Tensor

_VERSION = attrgetter("_version")


class Watch(Protocol):
    """Of the moment when it was made."""

    def unchanged(self) -> bool:
        """Whether every place holds the same object, every dictionary as many entries, and every tensor its values.

        A tensor's values are taken to be the same where its version (``Tensor._version``) and its address are.
        """
        ...


class PythonWatch:
    """See :class:`Watch`.

    Args:
        places: dictionaries, and names in them.
        sized: dictionaries whose number of entries counts.
        tensors: plain tensors that count their versions, so none of inference mode.
    """

    def __init__(
        self, places: list[tuple[dict[str, Any], str]], sized: list[dict[Any, Any]], tensors: list[Tensor]
    ) -> None:
        self._places, self._sized, self._tensors = places, sized, tensors
        self._held = self._held_now()
        self._numbers = self._numbers_now()

    def unchanged(self) -> bool:
        return all(map(is_, self._held_now(), self._held)) and self._numbers_now() == self._numbers

    def _held_now(self) -> list[Any]:
        return [mapping.get(name) for mapping, name in self._places]

    def _numbers_now(self) -> list[list[int]]:
        return [
            list(map(len, self._sized)),
            list(map(_VERSION, self._tensors)),
            list(map(Tensor.data_ptr, self._tensors)),
        ]


def _fastest() -> Callable[..., Watch]:
    try:
        from effnet_kernels import _watch
    except ImportError:
        return PythonWatch
    return _watch.Watch


_WATCH = _fastest()


def watch(places: list[tuple[dict[str, Any], str]], sized: list[dict[Any, Any]], tensors: list[Tensor]) -> Watch:
    """What tells whether these are still as they are now; arguments as for :class:`PythonWatch`."""
    return _WATCH(places, sized, tensors)
