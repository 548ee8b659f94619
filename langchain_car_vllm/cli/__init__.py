"""`car-vllm`: see, prepare and end what runs. The only place that prints."""

from langchain_car_vllm.cli.app import main

__all__ = ["main"]
