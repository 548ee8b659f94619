"""`doctor --selftest --model`: a small real model on this machine's real server, on both engines.

SmolLM2 is built from a wheel, so the Hub is not asked. Run state, and what the servers save of
their prompts, lie in a temporary `CAR_HOME`.
"""

import getpass
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import psutil

from langchain_car_vllm.cli.build_model import build_model
from langchain_car_vllm.cli.findings import Finding, check
from langchain_car_vllm.cli.output import size
from langchain_car_vllm.environment import CAR_HOME, CAR_VLLM_MLX_RUNTIME, overridden
from langchain_car_vllm.paths import managed_root
from langchain_car_vllm.runtime import installed_version
from langchain_car_vllm.runtime.host import current_host
from langchain_car_vllm.runtime.locate import binary_to_launch
from langchain_car_vllm.runtime.mac import ask_kernel
from langchain_car_vllm.runtime.metal import known_working_set
from langchain_car_vllm.server import running_servers, stop_server
from langchain_car_vllm.server.process import host_name
from langchain_car_vllm.support.process_state import KeptProperty
from langchain_car_vllm.version import VERSION

if TYPE_CHECKING:
    from langchain_car_vllm import ChatVllmMlx

_MODEL = "smollm2-135m"
# Inside quotes a path may hold spaces.
_PATH = re.compile(r"(?<=([`'\"]))[~/](?:(?!\1).)+|(?<![\w/])~?/[^\s`]+")
_CHIP = "machdep.cpu.brand_string"
_PATIENCE = 300.0
_ENGINES: tuple[Literal["simple", "batched"], ...] = ("simple", "batched")
_HIT = 0.8
_PROMPT_ITEMS = 60
_ANSWER_TOKENS = 48
_SCHEMA = {
    "title": "City",
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}},
    "required": ["name"],
}
Step = tuple[str, Callable[[], str]]


@contextmanager
def model_selftests() -> Iterator[list[Step]]:
    """Set up a home of its own and yield the steps; at the end no server of it is left."""
    with TemporaryDirectory(prefix="car-vllm-model-selftest-") as folder, ExitStack() as stack:
        root = Path(folder).resolve()
        variables = {CAR_HOME.name: str(root / "home")}
        if (runtime := managed_root()) is not None:
            # Where no home can be written to, it lies in the CAR_HOME that is left here.
            variables[CAR_VLLM_MLX_RUNTIME.name] = str(runtime)
        stack.enter_context(overridden(variables))
        stack.callback(_stop_all)
        model = root / _MODEL
        steps: list[Step] = [("model build", lambda: _built(model))]
        for engine in _ENGINES:
            steps += _EngineTrial(model, engine).steps()
        yield steps


class _EngineTrial:
    """The steps on one engine; the first starts the server, the last one ends it."""

    def __init__(self, model: Path, engine: Literal["simple", "batched"]) -> None:
        self._model, self._engine = model, engine

    def steps(self) -> list[Step]:
        """Return them in order."""
        steps = (
            ("answer", self.answer),
            ("prefix hit", self.prefix_hit),
            ("json_schema", self.json_schema),
            ("forced tool call", self.forced_call),
            ("two at once", self.two_at_once),
            ("rates", self.rates),
            ("stop", self.stop),
        )
        return [(f"{self._engine} {name}", step) for name, step in steps]

    def answer(self) -> str:
        """The model gives one answer, and the right one."""
        began = time.monotonic()
        text = self._llm.bind(max_tokens=16).invoke("What is the capital of France?").text
        check("Paris" in text, f"the capital of France is said to be `{text}`")
        return f"the first one after {time.monotonic() - began:.1f} s, including the start"

    def prefix_hit(self) -> str:
        """A system prompt that was read before is not read again."""
        text = " ".join(f"Item {n} is red." for n in range(_PROMPT_ITEMS))
        first, second = (self._first_token(text, end) for end in ("Count them!", "Name one!"))
        check(
            second < _HIT * first,
            f"first token after {first:.2f} s, and again after {second:.2f} s",
        )
        return f"first token after {first:.2f} s, then {second:.2f} s"

    def json_schema(self) -> str:
        """An answer fits a schema."""
        found = self._llm.with_structured_output(_SCHEMA).invoke("Name a city in France.")
        fits = isinstance(found, dict) and set(found) == {"name"}
        check(fits, f"the answer does not fit: `{found}`")
        return "the answer fits"

    def forced_call(self) -> str:
        """A tool that has to be called is called."""

        def weather(city: Literal["Paris", "Rome"]) -> str:
            """Tell the weather in a city."""
            return city

        bound = self._llm.bind_tools([weather], tool_choice="weather")
        calls = bound.invoke("What is the weather in Paris?").tool_calls
        right = [call["name"] for call in calls] == ["weather"]
        check(right and calls[0]["args"].keys() == {"city"}, f"the calls are `{calls}`")
        return "the call came with its argument"

    def two_at_once(self) -> str:
        """Two requests at a time are answered both."""
        began = time.monotonic()
        answers = self._llm.bind(max_tokens=8).batch(["Count to five.", "Say hello."])
        check(all(answer.text for answer in answers), "one of them is empty")
        return f"both after {time.monotonic() - began:.1f} s"

    def rates(self) -> str:
        """Prompts are read and answers written at some rate."""
        text = " ".join(f"Thing {n} is blue." for n in range(2 * _PROMPT_ITEMS))
        began = first = last = time.monotonic()
        total: Any = None
        for chunk in self._llm.bind(max_tokens=_ANSWER_TOKENS).stream(f"{text} Tell a story."):
            if chunk.content:
                last = time.monotonic()
                first = last if first == began else first
            total = chunk if total is None else total + chunk
        usage = total.usage_metadata or {}
        check(usage.get("output_tokens", 0) > 1 and last > first, "the answer has one token")
        prefill = usage["input_tokens"] / (first - began)
        decode = (usage["output_tokens"] - 1) / (last - first)
        return f"prefill {prefill:.0f} tokens/s, decode {decode:.1f} tokens/s"

    def stop(self) -> str:
        """A stop ends the process, so that all its memory is free."""
        [(directory, state)] = running_servers()
        process = state.server.find() if state.server else None
        if process is None:
            raise Finding("there is no server process")
        held = process.memory_info().rss
        stop_server(directory)
        check(not psutil.pid_exists(process.pid), "its process is still running")
        check(not running_servers(), "a server is still running")
        return f"it freed {size(held)}"

    @KeptProperty
    def _llm(self) -> "ChatVllmMlx":
        from langchain_car_vllm import ChatVllmMlx  # noqa: PLC0415 - LangChain, for this alone

        return ChatVllmMlx(
            model=str(self._model),
            engine=self._engine,
            temperature=0,
            max_tokens=_ANSWER_TOKENS,
            timeout=_PATIENCE,
            max_retries=0,
        )

    def _first_token(self, system: str, question: str) -> float:
        began = time.monotonic()
        # The simple engine keeps system prompts alone, and for streams alone.
        for _ in self._llm.bind(max_tokens=1).stream([("system", system), ("human", question)]):
            pass
        return time.monotonic() - began


def report_lines(rows: Iterable[tuple[str, str, str]]) -> list[str]:
    """Return a page to paste into an issue.

    Args:
        rows: The name of each step, its verdict, and what it said, masked.
    """
    host, binary = current_host(), binary_to_launch()
    packages = ("mlx", "mlx_lm", "mlx_vlm")
    versions = [
        f"{name.replace('_', '-')} {installed_version(binary, name)}" for name in packages if binary
    ]
    server = installed_version(binary) if binary else None
    working_set = known_working_set()
    return [
        "```text",
        f"langchain-car-vllm {VERSION}, Python {platform.python_version()}",
        f"vllm-mlx {server}, {', '.join(versions)}",
        f"{host.system} {'.'.join(map(str, host.release))} on {host.machine}, {_chip()}",
        f"memory {size(psutil.virtual_memory().total)}, Metal's working set {size(working_set)}",
        *(f"{verdict.ljust(7)}  {name}: {said}".rstrip(": ") for name, verdict, said in rows),
        "```",
    ]


def masked(said: str) -> str:
    """Return a text without paths and the names of this machine and its user."""
    names = [host_name()]
    with suppress(OSError, KeyError):
        names.append(getpass.getuser())
    said = _PATH.sub("<path>", said)
    for name in filter(None, names):
        said = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "<name>", said)
    return said


def _chip() -> str:
    if current_host().system != "darwin":
        return f"{psutil.cpu_count()} cores"
    return ask_kernel(_CHIP).values.get(_CHIP, "an unknown chip")


def _built(model: Path) -> str:
    began = time.monotonic()
    build_model(_MODEL, model)
    return f"SmolLM2 after {time.monotonic() - began:.0f} s"


def _stop_all() -> None:
    for directory, _ in running_servers():
        stop_server(directory)
