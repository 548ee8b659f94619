"""The order that a client gives to the supervisor that it starts."""

import json
from typing import NamedTuple

from langchain_car_vllm.errors import PackageChangedError
from langchain_car_vllm.server.policy import Policy
from langchain_car_vllm.server.spec import PROTOCOL, ServerSpec
from langchain_car_vllm.version import VERSION

# Of orders that do not name theirs.
_FIRST_PROTOCOL = 1


class Order(NamedTuple):
    """What to serve, and how long to wait for what."""

    spec: ServerSpec
    policy: Policy


def encode_order(order: Order) -> str:
    """Return an order as one line of JSON."""
    return json.dumps(
        {
            "protocol": PROTOCOL,
            "package": VERSION,
            "spec": order.spec.to_dict(),
            "policy": order.policy.to_dict(),
        }
    )


def decode_order(line: str) -> Order:
    """Rebuild what `encode_order` gave.

    Raises:
        PackageChangedError: The client runs another version of this package, whose order this one
            does not understand, or whose state the client would not.
    """
    values = json.loads(line)
    package = values.get("package")
    if values.get("protocol", _FIRST_PROTOCOL) != PROTOCOL:
        raise PackageChangedError(package, VERSION)
    try:
        return Order(ServerSpec.from_dict(values["spec"]), Policy.from_dict(values["policy"]))
    except (KeyError, TypeError) as error:
        raise PackageChangedError(package, VERSION) from error
