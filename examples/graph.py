"""A LangGraph graph that asks a person before it goes on, and resumes with the answer.

pip install langgraph
python examples/graph.py [MODEL]
"""

import sys
from typing import TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from langchain_car_vllm import ChatVllmMlx

model = sys.argv[1] if len(sys.argv) > 1 else "mlx-community/Qwen3-4B-4bit"
llm = ChatVllmMlx(model=model, temperature=0, max_tokens=60)


class State(TypedDict, total=False):
    topic: str
    draft: str
    sent: bool


def write(state: State) -> State:
    """Let the model write."""
    return {"draft": llm.invoke(f"Write one short sentence about {state['topic']}.").text}


def approve(state: State) -> State:
    """Let a person decide."""
    return {"sent": interrupt({"draft": state["draft"], "question": "Send it?"}) == "yes"}


builder = StateGraph(State)
builder.add_node(write)
builder.add_node(approve)
builder.add_edge(START, "write")
builder.add_edge("write", "approve")
builder.add_edge("approve", END)
graph = builder.compile(checkpointer=InMemorySaver())

if __name__ == "__main__":
    thread = {"configurable": {"thread_id": "1"}}
    stopped = graph.invoke({"topic": "the sea"}, thread)
    print(stopped["__interrupt__"][0].value)
    print(graph.invoke(Command(resume="yes"), thread))
