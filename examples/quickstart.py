"""Streams an answer, asks a second time, and shows text, usage and timings.

    python examples/quickstart.py [MODEL]

MODEL is a catalog id, a Hub repository or a directory.
"""

import sys
import time

from langchain_car_vllm import ChatVllmMlx

model = sys.argv[1] if len(sys.argv) > 1 else "mlx-community/Qwen3-4B-4bit"
llm = ChatVllmMlx(model=model, temperature=0, max_tokens=48)

began = time.perf_counter()
first = None
answer = None
for chunk in llm.stream("Name three colours of the rainbow."):
    if first is None and chunk.content:
        first = time.perf_counter() - began
    answer = chunk if answer is None else answer + chunk
    print(chunk.text, end="", flush=True)
print(
    f"\n-- streamed: first token after {first:.2f} s, all after {time.perf_counter() - began:.2f} s"
)
print(f"-- usage: {answer.usage_metadata}")

began = time.perf_counter()
reply = llm.invoke("What is the capital of France?")
print(f"\n{reply.text}")
print(f"-- invoked: {time.perf_counter() - began:.2f} s, usage: {reply.usage_metadata}")
print("-- the server stops by itself after ten idle minutes; `car-vllm stop --all` stops it now")
