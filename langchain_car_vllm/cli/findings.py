"""The exceptions that a check of `doctor` raises: a finding, or a warning."""


class Finding(Exception):  # noqa: N818
    """Something does not work."""

    def __init__(self, said: str, hint: str | None = None) -> None:
        super().__init__(said)
        self.said = said
        self.hint = hint


class Warned(Finding):
    """Something works, though not as one might expect."""


def check(condition: bool, said: str) -> None:
    """Raise a finding where a condition does not hold."""
    if not condition:
        raise Finding(said)
