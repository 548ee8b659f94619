"""One client process of the soak: random calls, each noted as one line of JSON.

    python client.py SEED MODEL...

It ends when its standard input does.
"""

import asyncio
import json
import os
import random
import sys
import threading
import time
import traceback

import psutil
from pydantic import BaseModel

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.server import Policy
from langchain_car_vllm.server.client import lease

seed, *models = sys.argv[1:]
choices = random.Random(int(seed))
policy = Policy.from_dict(json.loads(os.environ["SOAK_POLICY"]))
# The chat model takes its timings from the environment, which holds the stall limits alone.
lease.policy_from_environment = lambda: policy
over = threading.Event()
output = threading.Lock()


class Said(BaseModel):
    """What the fake answers with."""

    model: str
    prompt: str


def chat(model: str, **settings) -> ChatVllmMlx:
    keep_alive = choices.choice([0.0, 0.3, 2.0])
    return ChatVllmMlx(model=model, keep_alive=keep_alive, timeout=60, max_tokens=9, **settings)


def invoke(model, prompt):
    return chat(model).invoke(prompt).text


def stream(model, prompt):
    return "".join(chunk.text for chunk in chat(model).stream(prompt))


def cut(model, prompt):
    for _ in chat(model).stream(prompt):
        break
    return f"{model}|{prompt}"


def batch(model, prompt):
    first, second = chat(model).batch([prompt, f"{prompt}b"])
    assert second.text == f"{model}|{prompt}b", second.text
    return first.text


def ainvoke(model, prompt):
    async def call():
        return (await chat(model).ainvoke(prompt)).text

    return asyncio.run(call())


def astream(model, prompt):
    async def call():
        return "".join([chunk.text async for chunk in chat(model).astream(prompt)])

    return asyncio.run(call())


def cancel(model, prompt):
    async def call():
        task = asyncio.create_task(chat(model).ainvoke(prompt))
        await asyncio.sleep(choices.random() / 2)
        task.cancel()
        try:
            return (await task).text
        except asyncio.CancelledError:
            return f"{model}|{prompt}"

    return asyncio.run(call())


def structured(model, prompt):
    said = chat(model).with_structured_output(Said).invoke(prompt)
    return f"{said.model}|{said.prompt}"


def tools(model, prompt):
    message = chat(model, disable_streaming=True).bind_tools([Said]).invoke(prompt)
    arguments = message.tool_calls[0]["args"]
    return f"{arguments['model']}|{arguments['prompt']}"


def gentle(model, prompt):
    chat(model).unload(force=choices.random() < 0.3)
    return f"{model}|{prompt}"


CALLS = [invoke, stream, cut, batch, ainvoke, astream, cancel, structured, tools, gentle]


def note(**entry) -> None:
    with output:
        print(json.dumps(entry), flush=True)


def work(number: int) -> None:
    count = 0
    while not over.is_set():
        count += 1
        call, model = choices.choice(CALLS), choices.choice(models)
        prompt = f"{os.getpid()}-{number}-{count}"
        began = time.monotonic()
        entry = {"call": call.__name__, "model": model, "began": began}
        note(**entry)
        try:
            answer = call(model, prompt)
            entry["wrong"] = answer if answer != f"{model}|{prompt}" else None
        except Exception as error:  # noqa: BLE001
            entry["error"] = [cls.__name__ for cls in type(error).__mro__]
            entry["text"] = str(error)[:500]
            entry["where"] = traceback.format_tb(error.__traceback__)[-1]
        note(**entry, ended=time.monotonic())


workers = [threading.Thread(target=work, args=(n,)) for n in range(2)]
for worker in workers:
    worker.start()
sys.stdin.read()
over.set()
for worker in workers:
    worker.join()
process = psutil.Process()
note(descriptors=process.num_fds(), threads=process.num_threads())
