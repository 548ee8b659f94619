"""Numbers and truth values of other libraries, such as numpy's and those of `decimal`."""

from decimal import Decimal
from numbers import Integral, Real

_TRUTHS = ("bool", "bool_")
"""What Python and numpy call them; numpy's are of no class of Python's."""


def is_truth_value(value: object) -> bool:
    """Return whether a value is True or False, which Python counts among the numbers."""
    return type(value).__name__ in _TRUTHS


def plain_value(value: object) -> float | bool:
    """Return a number or truth value as JSON has it: what `json.dumps` asks for as `default`.

    Raises:
        TypeError: It is none.
    """
    if is_truth_value(value):
        return bool(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real | Decimal):
        return float(value)
    raise TypeError(f"an object of type `{type(value).__name__}` has no form in JSON")
