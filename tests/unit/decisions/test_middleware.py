"""LangChain's middleware decides with a local model."""

import math

import pytest
from fakes.reply import Reply
from langchain_core.messages import AIMessage, HumanMessage

pytest.importorskip("langchain_core.decisions", reason="langchain-core before 1.8")


@pytest.mark.filterwarnings("ignore:The middleware")
@pytest.mark.parametrize("risk", [0.9, 0.1])
def test_risky_calls_are_blocked_locally(decide, server, risk):
    """LangChain's middleware for risky calls takes it: a call runs or is turned away."""
    from langchain.agents import create_agent
    from langchain.agents.middleware import AutoModeMiddleware
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel

    ran = []

    def remove(path: str) -> str:
        """Remove a file."""
        ran.append(path)
        return "removed"

    class Calling(GenericFakeChatModel):
        def bind_tools(self, tools, **kwargs):
            return self

    call = {"name": "remove", "args": {"path": "/"}, "id": "1", "type": "tool_call"}
    answers = iter([AIMessage("", tool_calls=[call]), AIMessage("done")])
    likely = {"Yes": math.log(risk), "No": math.log(1 - risk)}
    server.dialect.script = lambda body: Reply(text="Yes", likely=likely)
    guard = AutoModeMiddleware(tools=["remove"], classifier=decide)
    agent = create_agent(Calling(messages=answers), tools=[remove], middleware=[guard])
    found = agent.invoke({"messages": [HumanMessage("tidy up")]})
    assert bool(ran) is (risk < 0.5)
    assert found["messages"][-1].text == "done"


@pytest.mark.filterwarnings("ignore:The middleware")
def test_agents_are_routed_locally(decide):
    """LangChain's middleware for routes takes it."""
    from langchain.agents import create_agent
    from langchain.agents.middleware import ModelRouterMiddleware
    from langchain.agents.middleware.model_router import ModelChoice
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel

    def saying(text: str) -> GenericFakeChatModel:
        return GenericFakeChatModel(messages=iter([AIMessage(text)]))

    choices = {
        "billing": ModelChoice(model=saying("paid"), criteria="money"),
        "rest": ModelChoice(model=saying("rest"), criteria="all else"),
    }
    router = ModelRouterMiddleware(choices=choices, instructions="Who helps?", classifier=decide)
    agent = create_agent(saying("nobody"), middleware=[router])
    found = agent.invoke({"messages": [HumanMessage("my card")]})
    assert found["messages"][-1].text == "paid"
