"""create_agent with each middleware that LangChain ships."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Serve
from fakes.reply import Reply
from langchain.agents import create_agent, middleware
from langchain.agents.middleware import (
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    FilesystemFileSearchMiddleware,
    HostExecutionPolicy,
    HumanInTheLoopMiddleware,
    LLMToolEmulator,
    LLMToolSelectorMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRefusalMiddleware,
    ModelRetryMiddleware,
    PIIMiddleware,
    ProviderToolSearchMiddleware,
    ShellToolMiddleware,
    SummarizationMiddleware,
    TodoListMiddleware,
    ToolCallLimitMiddleware,
    ToolErrorMiddleware,
    ToolRetryMiddleware,
    dynamic_prompt,
)
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

# They ask a decision model, whose tests are its own.
_ASK_A_DECISION_MODEL = {"AutoModeMiddleware", "ModelRouterMiddleware"}
ASK = {"messages": [HumanMessage("How many seats has the hall?")]}


@tool
def seats(hall: str) -> str:
    """Tell how many seats a hall has."""
    return f"{hall} has 40 seats"


@tool
def doors(hall: str) -> str:
    """Tell how many doors a hall has."""
    return f"{hall} has 2 doors"


def caller(body: dict[str, Any]) -> Reply:
    """Call the first tool once, then tell its result."""
    results = [m["content"] for m in body["messages"] if m["role"] == "tool"]
    if body.get("tools") and not results:
        return Reply(calls=[("seats", {"hall": "main"})])
    return Reply(text=f"The answer: {results[-1] if results else 'none'}.")


def test_none_is_forgotten():
    """A middleware that LangChain adds is missed here."""
    text = Path(__file__).read_text(encoding="utf-8")
    found = {name for name in middleware.__all__ if name.endswith("Middleware")}
    found -= {"AgentMiddleware", *_ASK_A_DECISION_MODEL}
    assert {name for name in found if f"{name}(" not in text} == set()


def test_context_is_edited(serve: Serve):
    """Old results of tools are cleared; the model's own count of tokens decides."""
    replies = iter([Reply(calls=[("seats", {"hall": str(n)})]) for n in range(3)])
    model, server = serve(lambda _: next(replies, Reply(text="Done.")))
    edit = ClearToolUsesEdit(trigger=30, keep=1)
    edits = ContextEditingMiddleware(edits=[edit], token_count_method="model")
    assert create_agent(model, [seats], middleware=[edits]).invoke(ASK)["messages"][-1].text
    results = [m["content"] for m in server.dialect.requests[-1]["messages"] if m["role"] == "tool"]
    assert results == ["[cleared]", "[cleared]", "2 has 40 seats"]


def test_files_are_searched(serve: Serve, tmp_path: Path):
    """The tools of the middleware reach the model and run."""
    (tmp_path / "note.txt").write_text("the key is under the mat")
    call = ("grep_search", {"pattern": "key", "output_mode": "content"})
    replies = iter([Reply(calls=[call])])
    model, server = serve(lambda _: next(replies, Reply(text="Under the mat.")))
    search = FilesystemFileSearchMiddleware(root_path=str(tmp_path), use_ripgrep=False)
    found = create_agent(model, [], middleware=[search]).invoke(ASK)["messages"]
    assert "under the mat" in next(m for m in found if isinstance(m, ToolMessage)).text
    names = {t["function"]["name"] for t in server.dialect.requests[0]["tools"]}
    assert names == {"glob_search", "grep_search"}


@pytest.mark.parametrize(
    ("decision", "told"),
    [
        ({"type": "approve"}, "main has 40 seats"),
        (
            {
                "type": "edit",
                "edited_action": {"name": "seats", "args": {"hall": "small"}},
            },
            "small has 40 seats",
        ),
        ({"type": "reject", "message": "not now"}, "not now"),
    ],
)
def test_a_person_decides(serve: Serve, decision: dict[str, Any], told: str):
    """The agent stops before the tool and goes on with what the person says."""
    model, _ = serve(caller)
    gate = HumanInTheLoopMiddleware({"seats": True})
    agent = create_agent(model, [seats], middleware=[gate], checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    stopped = agent.invoke(ASK, thread)
    assert stopped["__interrupt__"][0].value["action_requests"][0]["name"] == "seats"
    found = agent.invoke(Command(resume={"decisions": [decision]}), thread)
    assert told in found["messages"][-1].text


def test_tools_are_emulated(serve: Serve):
    """The model plays the tool."""

    def script(body: dict[str, Any]) -> Reply:
        return caller(body) if body.get("tools") else Reply(text="about 50 seats")

    model, _ = serve(script)
    agent = create_agent(model, [seats], middleware=[LLMToolEmulator(model=model)])
    found = agent.invoke(ASK)["messages"]
    assert [m.text for m in found if isinstance(m, ToolMessage)] == ["about 50 seats"]


async def test_tools_are_selected(serve: Serve):
    """The choice is structured output of ours, and only what was chosen is bound."""

    def script(body: dict[str, Any]) -> Reply:
        if "response_format" in body:
            return Reply(text=json.dumps({"tools": ["seats"]}))
        return caller(body)

    model, server = serve(script)
    selector = LLMToolSelectorMiddleware(model=model, max_tools=1)
    agent = create_agent(model, [seats, doors], middleware=[selector])
    assert "40 seats" in (await agent.ainvoke(ASK))["messages"][-1].text
    bound = [b["tools"] for b in server.dialect.requests if b.get("tools")]
    assert [[t["function"]["name"] for t in tools] for tools in bound] == [["seats"], ["seats"]]


def test_calls_of_the_model_are_limited(serve: Serve):
    """An agent that never ends is ended."""
    model, server = serve(lambda _: Reply(calls=[("seats", {"hall": "main"})]))
    limit = ModelCallLimitMiddleware(run_limit=3)
    found = create_agent(model, [seats], middleware=[limit]).invoke(ASK)
    assert "limit" in found["messages"][-1].text
    assert len(server.dialect.requests) == 3


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_another_model_takes_over(serve: Serve, status: int):
    """Whatever the first one fails with."""
    broken, _ = serve(lambda _: Reply(status=status, detail="no"), max_retries=0)
    model, _ = serve(caller)
    agent = create_agent(broken, [seats], middleware=[ModelFallbackMiddleware(model)])
    assert "40 seats" in agent.invoke(ASK)["messages"][-1].text


def test_an_answer_is_no_refusal(serve: Serve):
    """This server has no refusals, so nothing is taken for one."""
    model, _ = serve(caller)
    agent = create_agent(model, [seats], middleware=[ModelRefusalMiddleware()])
    assert "40 seats" in agent.invoke(ASK)["messages"][-1].text


def test_calls_of_the_model_are_retried(serve: Serve):
    """What may pass is tried again."""
    replies = iter([Reply(status=500, detail="no")])
    model, server = serve(lambda body: next(replies, None) or caller(body))
    retry = ModelRetryMiddleware(initial_delay=0, jitter=False, on_failure="error")
    agent = create_agent(model, [seats], middleware=[retry])
    assert "40 seats" in agent.invoke(ASK)["messages"][-1].text
    assert len(server.dialect.requests) == 3


def test_personal_data_never_reaches_the_model(serve: Serve):
    """Neither from the user nor from a tool; what the model says is cleaned as well."""
    model, server = serve(lambda _: Reply(text="Write to eve@example.org."))
    guard = PIIMiddleware("email", apply_to_output=True, apply_to_tool_results=True)
    agent = create_agent(model, [seats], middleware=[guard])
    found = agent.invoke({"messages": [HumanMessage("I am bob@example.org")]})
    assert found["messages"][-1].text == "Write to [REDACTED_EMAIL]."
    assert "bob@" not in json.dumps(server.dialect.requests)


def test_no_search_of_tools_is_pretended(serve: Serve):
    """A provider without one is refused by LangChain itself; without deferred tools all is well."""
    model, _ = serve(caller)
    idle = create_agent(model, [seats], middleware=[ProviderToolSearchMiddleware()])
    assert "40 seats" in idle.invoke(ASK)["messages"][-1].text
    search = ProviderToolSearchMiddleware(searchable_tools=["seats"])
    with pytest.raises(ValueError, match="tool search"):
        create_agent(model, [seats], middleware=[search]).invoke(ASK)


def test_a_shell_runs(serve: Serve, tmp_path: Path):
    """Its tool has a schema that the server takes, and its output comes back."""
    replies = iter([Reply(calls=[("shell", {"command": "echo $((6 * 7))"})])])
    model, _ = serve(lambda _: next(replies, Reply(text="42.")))
    shell = ShellToolMiddleware(tmp_path, execution_policy=HostExecutionPolicy())
    found = create_agent(model, [], middleware=[shell]).invoke(ASK)["messages"]
    assert "42" in next(m for m in found if isinstance(m, ToolMessage)).text


async def test_a_long_thread_is_summarised(serve: Serve):
    """The window of the profile is what the middleware measures against."""
    model, server = serve(
        lambda _: Reply(text="A short summary."), profile={"max_input_tokens": 4000}
    )
    short = SummarizationMiddleware(model, trigger=("fraction", 0.5), keep=("messages", 2))
    history = [HumanMessage(f"{n} " + "word " * 300) for n in range(10)]
    found = await create_agent(model, [], middleware=[short]).ainvoke({"messages": history})
    assert "A short summary." in found["messages"][0].text
    assert len(found["messages"]) < 10
    assert len(server.dialect.requests) == 2


def test_todos_are_written(serve: Serve):
    """A tool with nested objects in its schema."""
    todo = {"content": "count", "status": "in_progress"}
    replies = iter([Reply(calls=[("write_todos", {"todos": [todo]})])])
    model, _ = serve(lambda _: next(replies, Reply(text="Counted.")))
    found = create_agent(model, [seats], middleware=[TodoListMiddleware()]).invoke(ASK)
    assert found["todos"] == [todo]


def test_calls_of_tools_are_limited(serve: Serve):
    """What goes beyond is told to the model."""
    model, server = serve(
        lambda body: (
            Reply(calls=[("seats", {"hall": "main"})])
            if len(body["messages"]) < 5
            else Reply(text="Enough.")
        )
    )
    limit = ToolCallLimitMiddleware(tool_name="seats", run_limit=1)
    found = create_agent(model, [seats], middleware=[limit]).invoke(ASK)["messages"]
    assert found[-1].text == "Enough."
    assert "limit" in server.dialect.requests[-1]["messages"][-1]["content"].lower()


@tool
def fragile(hall: str) -> str:
    """Tell how many seats a hall has, if it works."""
    _TRIED.append(hall)
    if len(_TRIED) < 2:
        raise ConnectionError("the line is dead")
    return "40 seats"


_TRIED: list[str] = []


@pytest.mark.parametrize(
    ("cure", "told"),
    [
        (ToolRetryMiddleware(initial_delay=0, jitter=False), "40 seats"),
        (ToolErrorMiddleware(lambda error, _: f"it failed: {error}"), "the line is dead"),
    ],
)
def test_a_tool_fails(serve: Serve, cure: Any, told: str):
    """It is tried again, or the model is told."""
    _TRIED.clear()
    replies = iter([Reply(calls=[("fragile", {"hall": "main"})])])
    model, server = serve(lambda _: next(replies, Reply(text="Well.")))
    create_agent(model, [fragile], middleware=[cure]).invoke(ASK)
    assert told in server.dialect.requests[-1]["messages"][-1]["content"]


def test_a_prompt_that_changes(serve: Serve):
    """A system prompt that is made for each call goes out as one."""
    prompt = dynamic_prompt(lambda request: f"{len(request.messages)} messages")
    model, server = serve(caller)
    create_agent(model, [seats], middleware=[prompt]).invoke(ASK)
    firsts = [body["messages"][0] for body in server.dialect.requests]
    assert [(m["role"], m["content"]) for m in firsts] == [
        ("system", "1 messages"),
        ("system", "3 messages"),
    ]
