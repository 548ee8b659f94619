"""An agent with a tool, whose thread remembers what was said.

    pip install langchain
    python examples/agent.py [MODEL]

The model has to be one that calls tools.
"""

import sys

from langchain.agents import create_agent
from langgraph.checkpoint.memory import InMemorySaver

from langchain_car_vllm import ChatVllmMlx


def weather(city: str) -> str:
    """Return the weather in a city."""
    return f"It is sunny in {city}, 24 degrees."


model = sys.argv[1] if len(sys.argv) > 1 else "mlx-community/Qwen3-4B-4bit"
agent = create_agent(
    ChatVllmMlx(model=model, temperature=0, max_tokens=200),
    tools=[weather],
    system_prompt=(
        "You answer questions about the weather. Call the tool once for the city that is asked "
        "about. As soon as you have its result, answer in one plain sentence."
    ),
    checkpointer=InMemorySaver(),
)
thread = {"configurable": {"thread_id": "1"}, "recursion_limit": 12}
for question in ("What is the weather in Paris?", "Should I take an umbrella?"):
    result = agent.invoke({"messages": [{"role": "user", "content": question}]}, thread)
    for message in result["messages"]:
        for call in getattr(message, "tool_calls", ()):
            print(f"-- called {call['name']}({call['args']})")
    print(result["messages"][-1].text)
