"""The command line. Data goes to standard output, everything else to standard error."""

import sys
import time
from pathlib import Path
from typing import Annotated

import psutil
import typer

from langchain_car_vllm.cli.install import install, pull
from langchain_car_vllm.errors import CarVllmError, UnknownModelError
from langchain_car_vllm.models import parse_model_id
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.state import State
from langchain_car_vllm.server.stopping import running_servers, stop_server

app = typer.Typer(
    help="Install, see and end the model servers that langchain-car-vllm runs",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_EXIT_ERROR = 1
_EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command line; an error of ours is one sentence and exit code 1."""
    try:
        app()
    except CarVllmError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(_EXIT_ERROR)
    except KeyboardInterrupt:
        sys.exit(_EXIT_INTERRUPTED)


@app.callback()
def _root() -> None:
    """Install, see and end the model servers that langchain-car-vllm runs."""


app.command()(install)
app.command()(pull)


@app.command()
def ps() -> None:
    """List the running servers."""
    rows = [_row(state) for _, state in running_servers()]
    if not rows:
        print("no server is running", file=sys.stderr)
        return
    table = [("MODEL", "STAGE", "ENGINE", "PORT", "PID", "UP"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


@app.command()
def stop(
    model: Annotated[str | None, typer.Argument(help="The model id, as the code names it")] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Stop all servers")] = False,
) -> None:
    """Stop a model's server, or all of them, and return when they are gone."""
    if everything == (model is not None):
        raise typer.BadParameter("name one MODEL, or --all")
    chosen = _matching(model)
    if model is not None and not chosen:
        print(f"`{model}` is not running", file=sys.stderr)
        sys.exit(_EXIT_ERROR)
    for directory, state in chosen:
        stop_server(directory)
        print(f"stopped `{state.name}`", file=sys.stderr)


def _matching(model: str | None) -> list[tuple[ServerDirectory, State]]:
    running = running_servers()
    if model is None:
        return running
    try:
        name = parse_model_id(model).name
    except UnknownModelError:
        name = str(Path(model.removeprefix("vllm-mlx/")).expanduser())
    return [(directory, state) for directory, state in running if state.name == name]


def _row(state: State) -> tuple[str, ...]:
    pid = state.server.pid if state.server else None
    return (
        state.name,
        state.phase,
        state.engine or "-",
        str(state.port or "-"),
        str(pid or "-"),
        _age(pid),
    )


def _age(pid: int | None) -> str:
    try:
        seconds = int(time.time() - psutil.Process(pid).create_time()) if pid else None
    except psutil.Error:
        seconds = None
    if seconds is None:
        return "-"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
