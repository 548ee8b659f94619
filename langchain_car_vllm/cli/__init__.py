"""`car-vllm`: see, prepare and end what runs. The only place that prints."""

import sys
from importlib.util import find_spec

from langchain_car_vllm.cli.output import say
from langchain_car_vllm.runtime.host import unsupported_platform

__all__ = ["main"]


def main() -> None:
    """Run the command line; on Windows, say that no server runs there."""
    if find_spec("fcntl") is None:
        say(f"error: {unsupported_platform()}")
        sys.exit(1)
    from langchain_car_vllm.cli.app import main as run  # noqa: PLC0415 - needs kernel locks

    run()
