"""`run`: one answer, or a conversation."""

import sys
from contextlib import closing
from typing import Annotated, Any, Literal

import typer

from langchain_car_vllm.cli.conversation import GREETING, Conversation, read_questions
from langchain_car_vllm.cli.options import (
    EngineOption,
    KeepAlive,
    ModelArgument,
    Revision,
    ServerArguments,
    checked_by,
)
from langchain_car_vllm.cli.output import print_json, say
from langchain_car_vllm.progress.display import Display


def _check_temperature(value: float) -> None:
    # Pydantic, for this option alone.
    from langchain_car_vllm.wire.request.parameter_values import checked_values  # noqa: PLC0415

    checked_values({"temperature": value})


def run(
    model: ModelArgument,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="A question; without one a conversation begins"),
    ] = None,
    *,
    system: Annotated[str | None, typer.Option("--system", "-s", help="The system prompt")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            "-t",
            help="Randomness; 0 for none",
            callback=checked_by(_check_temperature),
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of tokens in the answer")
    ] = None,
    think: Annotated[
        bool | None, typer.Option("--think/--no-think", help="Whether the model thinks")
    ] = None,
    revision: Revision = None,
    engine: EngineOption = "auto",
    server_arg: ServerArguments = None,
    answer_format: Annotated[
        Literal["json"] | None,
        typer.Option("--format", help="`json` for an answer that is a JSON object"),
    ] = None,
    keep_alive: KeepAlive,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show token counts and rates")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the answer with its usage and times as JSON")
    ] = False,
) -> None:
    """Ask a model, starting its server.

    Without a prompt a conversation begins; what is piped in becomes part of the prompt.
    """
    question = _question(prompt) if prompt or not _is_terminal() else None
    if as_json and question is None:
        raise typer.BadParameter("it needs a PROMPT", param_hint="--json")
    from langchain_car_vllm import ChatVllmMlx  # noqa: PLC0415 - LangChain, for this command alone

    with closing(Display(model)) as display:
        llm = ChatVllmMlx(
            model=model,
            revision=revision,
            engine=engine,
            server_args=server_arg or [],
            temperature=temperature,
            max_tokens=max_tokens,
            reasoning=think,
            keep_alive=keep_alive,
            on_progress=display,
            **_format(answer_format),
        )
        conversation = Conversation(llm, system, verbose=verbose)
        if as_json:
            print_json(conversation.answer(str(question)))
            return
        if question is not None:
            conversation.ask(question)
            return
        say(GREETING)
        conversation.converse(read_questions(), display.close)


def _question(prompt: list[str] | None) -> str:
    """Return the words of the command line, and what is piped in below them."""
    parts = [" ".join(prompt or ())]
    if sys.stdin is not None and not _is_terminal():
        try:
            parts.append(sys.stdin.read().strip())
        except UnicodeDecodeError as error:
            raise typer.BadParameter("standard input is not UTF-8 text") from error
    text = "\n\n".join(part for part in parts if part)
    if not _is_text(text):  # without a locale Python reads any bytes
        raise typer.BadParameter("the prompt is not UTF-8 text")
    if not text:
        raise typer.BadParameter(
            "no prompt was given, neither as an argument nor on standard input"
        )
    return text


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _format(wanted: Literal["json"] | None) -> dict[str, Any]:
    """Return the setting that has the server write a JSON object."""
    return {"model_kwargs": {"response_format": {"type": "json_object"}}} if wanted else {}


def _is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()
