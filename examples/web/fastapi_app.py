"""A FastAPI app that streams answers as server-sent events.

pip install fastapi uvicorn
MODEL=mlx-community/Qwen3-4B-4bit uvicorn fastapi_app:app --workers 2
curl -N "http://127.0.0.1:8000/ask?question=Name+a+moon"
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import CarVllmError

llm = ChatVllmMlx(
    model=os.environ.get("MODEL", "mlx-community/Qwen3-4B-4bit"), temperature=0, max_tokens=80
)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Load the model before the first request."""
    await llm.awarm_up()
    yield


app = FastAPI(title="A local model", lifespan=lifespan)


async def events(question: str) -> AsyncIterator[str]:
    """Yield the answer; what goes wrong in the middle is an event of its own, never silence."""
    try:
        async for chunk in llm.astream(question):
            yield f"data: {json.dumps({'text': chunk.text})}\n\n"
        yield "event: end\ndata: {}\n\n"
    except CarVllmError as error:
        yield f"event: error\ndata: {json.dumps({'message': error.message})}\n\n"


@app.get("/ask")
async def ask(question: str) -> StreamingResponse:
    """Answer a question; a client that leaves ends the generation."""
    return StreamingResponse(events(question), media_type="text/event-stream")
