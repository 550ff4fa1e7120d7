from typing import Any

from torch import Tensor

class Watch:
    def __init__(
        self, places: list[tuple[dict[str, Any], str]], sized: list[dict[Any, Any]], tensors: list[Tensor]
    ) -> None: ...
    def unchanged(self) -> bool: ...
