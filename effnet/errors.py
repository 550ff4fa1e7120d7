"""The one error that commands turn into exit code 2."""


class OptionError(ValueError):
    """An option's value was refused before any work: which option, what was expected, what came.

    ``option`` is the Python name (``batch_size``); the command line shows it as ``--batch-size``.
    """

    def __init__(self, option: str, expected: str, got: object) -> None:
        self.option = option
        self.reason = f"expected {expected}, got {got}"
        super().__init__(f"{option}: {self.reason}")
