"""A conversation with a model in a terminal."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from langchain_car_vllm.cli.output import print_answer, say
from langchain_car_vllm.errors import CarVllmError
from langchain_car_vllm.support.printable import printable_answer

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from langchain_car_vllm import ChatVllmMlx

GREETING = "ask something; /help lists the commands, Ctrl-D ends the conversation"
_HELP = """\
/clear   forget the conversation
/bye     end it, like `exit` and Ctrl-D
\"\"\"      begin and end a question of several lines; pasted lines need none
Ctrl-C   stop an answer, or clear the line"""
_FENCE = '"""'
_END = ("/bye", "/exit", "/quit", "exit", "quit")
# What Ollama takes, followed by words; another path or word may begin a question.
_OLLAMAS = ("/set", "/show", "/load", "/save")


class Conversation:
    """What was said, and how answers are shown.

    Args:
        llm: Answers.
        system: What the model is told first, None for nothing.
        verbose: Whether tokens and rates are told after each answer.
    """

    def __init__(self, llm: "ChatVllmMlx", system: str | None, *, verbose: bool) -> None:
        self._llm = llm
        self._system = system
        self._verbose = verbose
        self._said: list[BaseMessage] = []
        self.clear()

    def clear(self) -> None:
        """Forget what was said."""
        from langchain_core.messages import SystemMessage  # noqa: PLC0415 - LangChain is slow

        self._said = [SystemMessage(self._system)] if self._system else []

    def ask(self, question: str) -> None:
        """Print the answer as it comes; an answer that is cut off is not remembered."""
        from langchain_core.messages import AIMessageChunk, HumanMessage  # noqa: PLC0415

        asked = [*self._said, HumanMessage(question)]
        answer: AIMessageChunk | None = None
        began = first = time.monotonic()
        for chunk in self._llm.stream(asked):
            if answer is None:
                first = time.monotonic()
            answer = chunk if answer is None else answer + chunk
            _show_thought(chunk.additional_kwargs.get("reasoning_content"))
            print_answer(chunk.text)
        print()
        if answer is None:
            return
        self._said = [*asked, answer]
        if self._verbose and (usage := answer.usage_metadata):
            written = usage["output_tokens"]
            line = f"{usage['input_tokens']} tokens in, {written} tokens out"
            seconds = time.monotonic() - first
            if written > 1 and seconds > 0:
                line += f" at {(written - 1) / seconds:.1f} tokens/s"
            say(f"{line}, first after {first - began:.1f} s")

    def answer(self, question: str) -> dict[str, Any]:
        """Return the answer to one question, with its usage and times, for a program."""
        from langchain_core.messages import HumanMessage  # noqa: PLC0415 - LangChain is slow

        answer = self._llm.invoke([*self._said, HumanMessage(question)])
        return {
            "model": answer.response_metadata.get("model_name"),
            "text": answer.text,
            "reasoning": answer.additional_kwargs.get("reasoning_content"),
            "finish_reason": answer.response_metadata.get("finish_reason"),
            "usage": answer.usage_metadata,
            "timings": answer.response_metadata.get("timings"),
        }

    def converse(self, questions: Iterator[str], interrupted: Callable[[], None]) -> None:
        """Answer questions until they end.

        Args:
            questions: What a person types, commands among it.
            interrupted: Called when Ctrl-C has ended an answer.
        """
        for text in questions:
            if text in _END:
                return
            if text == "/clear":
                self.clear()
                say("the conversation is forgotten")
            elif text in ("/help", "/?"):
                say(_HELP)
            elif _is_command(text):
                say(f"`{text.split()[0]}` is not a command; /help lists them")
            else:
                try:
                    self.ask(text)
                except KeyboardInterrupt:
                    interrupted()
                    say("")
                except CarVllmError as error:  # what was said before is not lost for it
                    interrupted()
                    say(f"\nerror: {error}")


def _is_command(text: str) -> bool:
    words = text.split()
    return text.startswith("/") and (len(words) == 1 or words[0] in _OLLAMAS)


def read_questions() -> Iterator[str]:
    """Yield what a person types: a line, pasted lines, or what stands between two \"\"\"."""
    from prompt_toolkit import PromptSession  # noqa: PLC0415 - for a conversation alone

    session: PromptSession[str] = PromptSession()
    held: list[str] | None = None
    while True:
        try:
            line = session.prompt(">>> " if held is None else "... ")
        except KeyboardInterrupt:
            held = None
            say("Ctrl-D or /bye ends the conversation")
            continue
        except EOFError:
            return
        if held is None and line.lstrip().startswith(_FENCE):
            held, line = [], line.lstrip().removeprefix(_FENCE)
        if held is not None:
            held.append(line)
            if not line.rstrip().endswith(_FENCE):
                continue
            line, held = "\n".join(held).rstrip().removesuffix(_FENCE), None
        if line.strip():
            yield line.strip()


def _show_thought(thought: object) -> None:
    """Show what the model thinks to a person, dimmed; a pipe gets the answer alone."""
    if isinstance(thought, str) and thought and sys.stderr is not None and sys.stderr.isatty():
        shown = printable_answer(thought)
        print(f"\x1b[2m{shown}\x1b[0m", end="", file=sys.stderr, flush=True)
