"""`run`: one answer, or a conversation."""

import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from langchain_car_vllm.cli.output import ModelArgument, say
from langchain_car_vllm.display import Display

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from langchain_car_vllm import ChatVllmMlx

_GREETING = "ask something; Ctrl-D ends the conversation, Ctrl-C an answer"


def run(
    model: ModelArgument,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]...", help="One question; without it a conversation"),
    ] = None,
    *,
    system: Annotated[str | None, typer.Option(help="What the model is told first")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 for no randomness")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer")] = None,
    think: Annotated[
        bool | None, typer.Option("--think/--no-think", help="Whether the model thinks")
    ] = None,
    keep_alive: Annotated[
        str, typer.Option(help="How long the server stays afterwards, such as 30s, 10m, 0 or -1")
    ] = "10m",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell the tokens used")] = False,
) -> None:
    """Ask a model, starting its server.

    Without a prompt it is a conversation; what is piped in belongs to the prompt.
    """
    question = _question(prompt) if prompt or not sys.stdin.isatty() else None
    from langchain_car_vllm import ChatVllmMlx  # noqa: PLC0415 - LangChain, for this command alone

    with closing(Display(model)) as display:
        llm = ChatVllmMlx(
            model=model,
            temperature=temperature,
            max_tokens=max_tokens,
            reasoning=think,
            keep_alive=keep_alive,
            on_progress=display,
        )
        talk = _Talk(llm, system, verbose=verbose)
        if question is not None:
            talk.ask(question)
            return
        say(_GREETING)
        for question in _questions():
            try:
                talk.ask(question)
            except KeyboardInterrupt:
                display.close()
                say("")


def _question(prompt: list[str] | None) -> str:
    """Return the words of the command line, and what is piped in below them."""
    parts = [" ".join(prompt or ())]
    if not sys.stdin.isatty():
        parts.append(sys.stdin.read().strip())
    text = "\n\n".join(part for part in parts if part)
    if not text:
        raise typer.BadParameter("there is no prompt, neither as an argument nor on standard input")
    return text


def _questions() -> Iterator[str]:
    import readline  # noqa: F401, PLC0415 - `input` edits lines with it

    while True:
        try:
            text = input(">>> ").strip()
        except EOFError:
            say("")
            return
        if text:
            yield text


class _Talk:
    """A conversation: what was said, and how answers are shown."""

    def __init__(self, llm: "ChatVllmMlx", system: str | None, *, verbose: bool) -> None:
        from langchain_core.messages import SystemMessage  # noqa: PLC0415

        self._llm = llm
        self._verbose = verbose
        self._said: list[BaseMessage] = [SystemMessage(system)] if system else []

    def ask(self, question: str) -> None:
        """Print the answer as it comes; an answer that is cut off is not remembered."""
        from langchain_core.messages import AIMessageChunk, HumanMessage  # noqa: PLC0415

        asked = [*self._said, HumanMessage(question)]
        answer: AIMessageChunk | None = None
        for chunk in self._llm.stream(asked):
            answer = chunk if answer is None else answer + chunk
            self._show_thought(chunk.additional_kwargs.get("reasoning_content"))
            print(chunk.text, end="", flush=True)
        print()
        if answer is None:
            return
        self._said = [*asked, answer]
        if self._verbose and (usage := answer.usage_metadata):
            say(f"{usage['input_tokens']} tokens in, {usage['output_tokens']} tokens out")

    def _show_thought(self, thought: object) -> None:
        """Show what the model thinks to a person, dimmed; a pipe gets the answer alone."""
        if isinstance(thought, str) and thought and sys.stderr.isatty():
            print(f"\x1b[2m{thought}\x1b[0m", end="", file=sys.stderr, flush=True)
