"""The arguments and options that several commands have."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, TypeVar

import typer

from langchain_car_vllm.cli.output import say
from langchain_car_vllm.durations import seconds
from langchain_car_vllm.environment import CAR_VLLM_MLX_KEEP_ALIVE
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.models import parse_model_id
from langchain_car_vllm.models.snapshot import check_revision
from langchain_car_vllm.server.spec import Engine, ServerSpec, check_arguments

T = TypeVar("T")


def checked_by(check: Callable[[T], object]) -> Callable[[T | None], T | None]:
    """Return what refuses an option's value as wrong usage where a check refuses it.

    Args:
        check: Raises a ConfigurationError for what cannot be.
    """

    def checked(value: T | None) -> T | None:
        if value is not None:
            try:
                check(value)
            except ConfigurationError as error:
                raise typer.BadParameter(str(error)) from error
        return value

    return checked


def check_keep_alive(text: str) -> None:
    """Refuse what is not a time that a model can be kept.

    Raises:
        ConfigurationError: It is none.
    """
    seconds(text, "--keep-alive", lowest=-1)


def usual_keep_alive() -> str:
    """Return what the variable says; one that cannot be is refused by the command, not by Tab."""
    with suppress(ConfigurationError):
        return CAR_VLLM_MLX_KEEP_ALIVE.read()
    return CAR_VLLM_MLX_KEEP_ALIVE.default


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]
EngineOption = Annotated[
    Engine, typer.Option(help="`batched` answers several requests at once, `simple` one at a time")
]
ServerArguments = Annotated[
    list[str] | None,
    typer.Option(
        "--server-arg",
        help="An option for `vllm-mlx serve`; repeat it for each word: `--server-arg=--x`",
        callback=checked_by(check_arguments),
    ),
]
KeepAlive = Annotated[
    str,
    typer.Option(
        "--keep-alive",
        "--keepalive",
        default_factory=usual_keep_alive,
        show_default=f"{CAR_VLLM_MLX_KEEP_ALIVE.name} or {CAR_VLLM_MLX_KEEP_ALIVE.default}",
        help="How long the model stays in memory after a request, such as 30s, 10m, 0 or -1",
        callback=checked_by(check_keep_alive),
    ),
]
HeldKeepAlive = Annotated[
    str | None,
    typer.Option(
        "--keep-alive",
        help="How long the model stays in memory after a request, such as 10m; without this "
        "option it stays as long as it is served, unless another model needs the memory; "
        f"{CAR_VLLM_MLX_KEEP_ALIVE.name} has no effect here",
        callback=checked_by(check_keep_alive),
    ),
]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Catalog id, Hub repository or directory")
]
ModelArguments = Annotated[
    list[str], typer.Argument(metavar="MODEL", help="Catalog ids, Hub repositories, directories")
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit", callback=checked_by(check_revision))
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation")]


def found_for_all(models: Sequence[str], find: Callable[[str], T]) -> list[tuple[str, T]]:
    """Return each model with what is found of it, before anything is done to the first.

    Raises:
        ConfigurationError: Of one nothing is; all of those are told.
    """
    found, failures = [], []
    for model in models:
        try:
            found.append((model, find(model)))
        except ConfigurationError as error:
            failures.append(error)
    for failure in failures[:-1]:
        say(f"error: {failure}\n")
    if failures:
        raise failures[-1]
    return found


def server_of_options(
    model: str, revision: str | None, engine: Engine, server_arg: Sequence[str] | None
) -> ServerSpec:
    """Return the server that a command line names.

    Raises:
        ConfigurationError: There is none of that name.
    """
    found = parse_model_id(model)
    return ServerSpec(
        found.source,
        found.name,
        revision=revision,
        engine=engine,
        server_args=tuple(server_arg or ()),
    )


def options_of_server(
    revision: str | None, engine: Engine, server_arg: Sequence[str] | None
) -> list[str]:
    """Return the words that name a server to another command."""
    words = ["--engine", engine] if engine != "auto" else []
    words += ["--revision", revision] if revision is not None else []
    return [*words, *(f"--server-arg={word}" for word in server_arg or ())]
