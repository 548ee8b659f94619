"""What a plan needs to know of a model of the Hub, as data that crosses between processes."""

import json
from typing import Any, NamedTuple

from langchain_car_vllm.support.json_objects import read_json_object

_MARK, _REFUSED = "hub: ", "hub refuses: "


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


def encode_refusal(verdict: dict[str, Any]) -> str:
    """Return why the Hub gives no listing as one line of text."""
    return _REFUSED + json.dumps(verdict)


def read_refusal(text: str) -> dict[str, Any] | None:
    """Return what `encode_refusal` gave where the Hub itself refuses for certain, else None."""
    lines = [line for line in text.splitlines() if line.startswith(_REFUSED)]
    verdict = read_json_object(lines[-1].removeprefix(_REFUSED)) if lines else None
    return verdict if verdict is not None and verdict.get("certain") is True else None


def read_listing(text: str) -> HubListing | None:
    """Return what `encode_listing` gave, from among other lines; None where it is not there."""
    lines = [line for line in text.splitlines() if line.startswith(_MARK)]
    return HubListing(*json.loads(lines[-1].removeprefix(_MARK))) if lines else None
