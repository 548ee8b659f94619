"""What a plan needs to know of a model of the Hub, as data that crosses between processes."""

import json
from typing import Any, NamedTuple

_MARK = "hub: "


class HubListing(NamedTuple):
    """A model of the Hub, as it is listed there.

    Attributes:
        config: What its `config.json` holds.
        fetched: Bytes that a download brings.
        weights: Bytes of the weights that the server loads.
    """

    config: dict[str, Any]
    fetched: int
    weights: int


def encode_listing(listing: HubListing) -> str:
    """Return a listing as one line of text."""
    return _MARK + json.dumps(listing)


def read_listing(text: str) -> HubListing | None:
    """Return what `encode_listing` gave, from among other lines; None where it is not there."""
    lines = [line for line in text.splitlines() if line.startswith(_MARK)]
    return HubListing(*json.loads(lines[-1].removeprefix(_MARK))) if lines else None
