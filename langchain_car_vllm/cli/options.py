"""The arguments and options that several commands have."""

from collections.abc import Sequence
from typing import Annotated

import typer

from langchain_car_vllm.models import parse_model_id
from langchain_car_vllm.models.snapshot import check_revision
from langchain_car_vllm.server.spec import Engine, ServerSpec, check_arguments


def checked_revision(revision: str | None) -> str | None:
    """Return a revision once it can be one.

    Raises:
        ConfigurationError: It cannot.
    """
    if revision is not None:
        check_revision(revision)
    return revision


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]
EngineOption = Annotated[
    Engine, typer.Option(help="`batched` answers several at once, `simple` one by one")
]
ServerArguments = Annotated[
    list[str] | None,
    typer.Option(
        "--server-arg", help="As in `server_args`; once for each word: `--server-arg=--x`"
    ),
]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Catalog id, Hub repository or directory")
]
ModelArguments = Annotated[
    list[str], typer.Argument(metavar="MODEL", help="Catalog ids, Hub repositories, directories")
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit", callback=checked_revision)
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")]


def server_of_options(
    model: str, revision: str | None, engine: Engine, server_arg: Sequence[str] | None
) -> ServerSpec:
    """Return the server that a command line names.

    Raises:
        ConfigurationError: There is none of that name, or it cannot be given an argument.
    """
    check_arguments(server_arg or ())
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
