"""What earlier tests have left behind."""

from langchain_car_vllm.server import running_servers, stop_server


def stop_servers() -> None:
    """Stop all servers of this run."""
    for directory, _ in running_servers():
        stop_server(directory)
