"""The table of families, proven by driving the real server's parsers with sample outputs."""

import json
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from langchain_car_vllm.models.families import family_facts, own_code_types
from langchain_car_vllm.runtime import interpreter_of
from langchain_car_vllm.wire.answer.reader import Delta
from langchain_car_vllm.wire.answer.text_calls import TextCallFilter
from langchain_car_vllm.wire.answer.written_calls import CallNames

ARGUMENTS = {"city": "Paris", "days": 3, "units": ["c", "f"]}
CALL = [["get_weather", ARGUMENTS]]
THOUGHT = "I should look it up."
ANSWER = "It is sunny."
_JSON = json.dumps(ARGUMENTS)
_NAMED = json.dumps({"name": "get_weather", "arguments": ARGUMENTS})

HERMES = f"<tool_call>\n{_NAMED}\n</tool_call>"
XML = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n"
    '<parameter=units>\n["c", "f"]\n</parameter>\n</function>\n</tool_call>'
)
GEMMA = (
    '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3,'
    'units:[<|"|>c<|"|>,<|"|>f<|"|>]}<tool_call|>'
)
LLAMA = f'{{"name": "get_weather", "parameters": {_JSON}}}'
HARMONY_THOUGHT = f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant"
HARMONY = (
    f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{_JSON}<|call|>"
)
HARMONY_ANSWER = f"<|channel|>final<|message|>{ANSWER}<|return|>"
DEEPSEEK = (
    "<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>function"
    f"<\uff5ctool\u2581sep\uff5c>get_weather\n```json\n{_JSON}\n```"
    "<\uff5ctool\u2581call\u2581end\uff5c><\uff5ctool\u2581calls\u2581end\uff5c>"
)
DSML = (
    '<|tool_calls>\n<|invoke name="get_weather">\n'
    '<|parameter name="city" string="true">Paris</|parameter>\n'
    '<|parameter name="days" string="false">3</|parameter>\n'
    '<|parameter name="units" string="false">["c", "f"]</|parameter>\n'
    "</|invoke>\n</|tool_calls>"
).replace("|", "\uff5cDSML\uff5c")
GLM = (
    "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
    '<arg_key>units</arg_key>\n<arg_value>["c", "f"]</arg_value>\n</tool_call>'
)
KIMI = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
    f"<|tool_call_argument_begin|>{_JSON}<|tool_call_end|><|tool_calls_section_end|>"
)
MINIMAX = (
    '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n'
    '<parameter name="days">3</parameter>\n<parameter name="units">["c", "f"]</parameter>\n'
    "</invoke>\n</minimax:tool_call>"
)
OPENED = f"{THOUGHT}\n</think>\n\n"
"""A thought that the chat template has opened."""
THINK = f"<think>\n{OPENED}"
"""A thought that the model opens itself."""


class Sample(NamedTuple):
    """What models of a family write.

    Attributes:
        model: A model's name; it leads to the parsers.
        call: A call of `get_weather`.
        thought: What comes before an answer of a model that thinks.
        answer: An answer.
        opens_thought: Whether the chat template opens the thought.
    """

    model: str
    call: str | None
    thought: str = ""
    answer: str = ANSWER
    opens_thought: bool = False


SAMPLES = (
    Sample("org/Qwen2.5-Coder-1.5B-Instruct", HERMES),
    Sample("org/Qwen3-4B", HERMES, THINK),
    Sample("org/Qwen3-4B-Instruct-2507", HERMES),
    Sample("org/Qwen3-4B-Thinking-2507", HERMES, OPENED, opens_thought=True),
    Sample("org/Qwen3-Coder-30B-A3B-Instruct", XML),
    Sample("org/Qwen3-VL-4B-Instruct", HERMES),
    Sample("org/Qwen3-VL-8B-Thinking", HERMES, OPENED, opens_thought=True),
    Sample("org/Qwen3.5-9B", XML, OPENED, opens_thought=True),
    Sample("org/Qwen3.6-35B-A3B-4bit", XML, OPENED, opens_thought=True),
    Sample("google/gemma-4-E2B-it", GEMMA, f"<|channel>thought\n{THOUGHT}\n<channel|>"),
    Sample("org/gemma-3-4b-it", None),
    Sample("org/Llama-3.2-3B-Instruct", LLAMA),
    Sample("org/Llama-4-Scout", f"<|python_tag|>{LLAMA}"),
    Sample("org/gpt-oss-20b", HARMONY, HARMONY_THOUGHT, HARMONY_ANSWER),
    Sample("org/Devstral-Small-2507", f"[TOOL_CALLS]get_weather[ARGS]{_JSON}"),
    Sample(
        "org/Magistral-Small-2509",
        f"[TOOL_CALLS]get_weather[ARGS]{_JSON}",
        f"[THINK]{THOUGHT}[/THINK]",
    ),
    Sample("org/DeepSeek-V3-0324", DEEPSEEK),
    Sample("org/DeepSeek-R1-Distill-Qwen-7B", DEEPSEEK, OPENED, opens_thought=True),
    Sample("org/DeepSeek-R1-0528", DEEPSEEK, THINK),
    Sample("org/DeepSeek-V4", DSML, OPENED, opens_thought=True),
    Sample("org/GLM-4.6", GLM, THINK),
    Sample("org/GLM-4.7-Flash", GLM, OPENED, opens_thought=True),
    Sample("org/Kimi-K2-Instruct", KIMI),
    Sample("org/granite-4.0-tiny", HERMES),
    Sample("org/granite-3.3-8b-instruct", f"<|tool_call|>[{_NAMED}]"),
    Sample("org/NVIDIA-Nemotron-3-Nano-30B", XML, OPENED, opens_thought=True),
    Sample("org/MiniMax-M2", MINIMAX, OPENED, opens_thought=True),
    Sample("org/Step-3.5-Flash", XML, OPENED, opens_thought=True),
    Sample("org/xLAM-2-8b", f"[{_NAMED}]"),
    Sample("org/functionary-v3.1", f"<function=get_weather>{_JSON}</function>"),
    Sample("org/Hermes-3-Llama", HERMES),
    Sample("org/unheard-of", None),
)


class Case(NamedTuple):
    """One output, and what a client must get of it."""

    sample: Sample
    text: str
    reasoning: str
    content: str
    calls: list[list[object]]
    tools: bool = True


def cases_of(sample: Sample) -> list[Case]:
    """Return the outputs that a family must be read right in."""
    thought = THOUGHT if sample.thought else ""
    cases = [
        Case(sample, sample.thought + sample.answer, thought, ANSWER, []),
        Case(sample, sample.thought + sample.answer, thought, ANSWER, [], tools=False),
    ]
    if sample.call is not None:
        cases.append(Case(sample, sample.thought + sample.call, thought, "", CALL))
    return cases


CASES = [case for sample in SAMPLES for case in cases_of(sample)]

# Qwen2.5's own chat template shows calls in doubled braces, and small models write them so.
DOUBLED_MODELS = ("org/Qwen2.5-Coder-1.5B-Instruct", "org/Qwen2.5-7B-Instruct")
_DOUBLED = f"{{{_NAMED}}}"
DOUBLED_TEXTS = [
    wrapping.replace("CALL", written)
    for wrapping in ("CALL", "<tool_call>\nCALL\n</tool_call>", "```json\nCALL\n```")
    for written in (_DOUBLED, f"{_DOUBLED}}}", _DOUBLED[:-1], f"{_NAMED}}}")
]
DOUBLED = [
    Case(Sample(model, call=None, answer=ANSWER), text, "", "", CALL)
    for model in DOUBLED_MODELS
    for text in DOUBLED_TEXTS
]


@pytest.fixture(scope="module")
def results(machine: None) -> list[dict[str, dict[str, object]]]:
    """What the real server makes of all cases."""
    interpreter = interpreter_of(Path(os.environ["CAR_VLLM_MLX_BIN"]))
    assert interpreter is not None
    asked = []
    for case in [*CASES, *DOUBLED]:
        family = family_facts(case.sample.model)
        asked.append(
            {
                "tool_call": family.tool_call_parser,
                "reasoning": family.reasoning_parser if family.thinks else None,
                "text": case.text,
                "tools": case.tools,
                "opens_thought": case.sample.opens_thought,
            }
        )
    harness = Path(__file__).with_name("parser_harness.py")
    ended = subprocess.run(
        [interpreter, "-I", harness],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found: list[dict[str, dict[str, object]]] = json.loads(ended.stdout.splitlines()[-1])
    return found


def name_of(case: Case) -> str:
    kind = "call" if case.calls else "answer" if case.tools else "chat"
    return f"{case.sample.model.removeprefix('org/')}-{kind}"


@pytest.mark.parametrize("number", range(len(CASES)), ids=[name_of(case) for case in CASES])
def test_outputs_of_each_family_are_read_right(
    results: list[dict[str, dict[str, object]]], number: int
):
    """Thought, answer and calls arrive as what they are, in a stream where the table says so.

    Where it says that a stream loses calls, it does: otherwise the table is out of date.
    """
    case = CASES[number]
    wanted = {"reasoning": case.reasoning, "content": case.content, "calls": case.calls}
    assert results[number]["plain"] == wanted
    streams = family_facts(case.sample.model).streams_tool_calls or not case.calls
    assert (results[number]["streamed"] == wanted) is streams


@pytest.mark.parametrize("way", ["plain", "streamed"])
@pytest.mark.parametrize("number", range(len(DOUBLED)))
def test_calls_in_doubled_braces_are_read_here(
    results: list[dict[str, dict[str, object]]], number: int, way: str
):
    """What the server leaves as text becomes the call, and nothing of it stays."""
    found = results[len(CASES) + number][way]
    if way == "streamed" and found["content"] == "":
        # Within tags the server takes away what is not JSON; then the call is asked for again,
        # not streamed, where it leaves the text.
        assert "<tool_call>" in DOUBLED[number].text
        found = results[len(CASES) + number]["plain"]
    filter_ = TextCallFilter(CallNames({"get_weather": "get_weather"}))
    deltas = [filter_.feed(Delta(str(found["content"]))), *filter_.end("stop")]
    written = [chunk for delta in deltas if delta for chunk in delta.calls]
    calls = [[chunk["name"], json.loads(chunk["args"] or "")] for chunk in written]
    assert (found["calls"] or calls) == CALL
    assert "".join(delta.text for delta in deltas if delta) == ""


def test_models_with_code_of_their_own_are_implemented_by_the_server():
    """A repository's code is passed over only where the server has a model of that type."""
    python = interpreter_of(Path(os.environ["CAR_VLLM_MLX_BIN"]))
    code = (
        "import ast, importlib.util, json, pathlib, sys\n"
        "folder = pathlib.Path(importlib.util.find_spec('mlx_lm').origin).parent\n"
        "tree = ast.parse((folder / 'utils.py').read_text())\n"
        "names = {n.targets[0].id: n.value for n in tree.body"
        " if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)}\n"
        "other = ast.literal_eval(names['MODEL_REMAPPING'])\n"
        "models = {p.stem for p in (folder / 'models').glob('*.py')}\n"
        "asked = json.loads(sys.argv[1])\n"
        "print(json.dumps([t for t in asked if other.get(t, t) not in models]))\n"
    )
    command = [str(python), "-c", code, json.dumps(own_code_types())]
    assert json.loads(subprocess.run(command, check=True, capture_output=True).stdout) == []
