"""`install`: the runtime."""

from contextlib import closing
from shlex import quote
from typing import Annotated

import typer

from langchain_car_vllm.cli.output import say
from langchain_car_vllm.progress.display import Display
from langchain_car_vllm.runtime import VllmRuntime, install_runtime, upgrade_runtime
from langchain_car_vllm.runtime.locate import binary_to_launch, overriding_binary
from langchain_car_vllm.server.supervisor.limits import allow_files
from langchain_car_vllm.server.wakefulness import Wakefulness


def install(
    *,
    upgrade: Annotated[
        bool,
        typer.Option("--upgrade", help="Update the managed install to the newest tested versions"),
    ] = False,
) -> None:
    """Install `vllm-mlx` if it is missing.

    Prints where it is.
    """
    allow_files()  # uv opens many, and older ones do not see to it
    with Wakefulness(), closing(Display("vllm-mlx")) as display:
        provide = upgrade_runtime if upgrade else install_runtime
        runtime = provide(on_progress=display)
    say(f"vllm-mlx {runtime.version or 'of unknown version'} is installed")
    _tell_what_is_used(runtime)
    print(runtime.server)


def _tell_what_is_used(runtime: VllmRuntime) -> None:
    used = binary_to_launch()
    if used is not None and used != runtime.server:
        cure = f"to change that, run `export CAR_VLLM_MLX_BIN={quote(str(runtime.server))}`"
        why = f"it is found first; {cure}"
        if overriding_binary():
            why = "CAR_VLLM_MLX_BIN names it"
        say(f"`{used}` stays in use: {why}")
