"""`completion`: what makes a shell complete commands and options."""

from typing import Annotated, Literal

import typer
from typer.completion import completion_init, get_completion_script  # type: ignore[attr-defined]

# Without it nothing that a shell asks is answered: typer does this for its own options alone.
completion_init()

PROGRAM = "car-vllm"


def completion(
    shell: Annotated[
        Literal["bash", "zsh", "fish"], typer.Argument(metavar="SHELL", help="Which shell")
    ],
) -> None:
    """Print a completion script.

    For `eval "$(car-vllm completion zsh)"` in the shell's start-up file, in zsh behind `compinit`.
    In fish, `car-vllm completion fish | source`.
    """
    variable = f"_{PROGRAM}_COMPLETE".replace("-", "_").upper()
    print(get_completion_script(prog_name=PROGRAM, complete_var=variable, shell=shell))
