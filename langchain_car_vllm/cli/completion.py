"""`completion`: what makes a shell complete commands and options."""

from typing import Annotated, Literal

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]

PROGRAM = "car-vllm"


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Which shell")],
) -> None:
    """Print a completion script.

    For `eval "$(car-vllm completion zsh)"` in the shell's start-up file.
    """
    variable = f"_{PROGRAM}_COMPLETE".replace("-", "_").upper()
    print(get_completion_script(prog_name=PROGRAM, complete_var=variable, shell=shell))
