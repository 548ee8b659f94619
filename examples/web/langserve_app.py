"""A LangServe app whose workers share one server; the playground is at /chat/playground/.

pip install "langserve[all]" uvicorn
MODEL=mlx-community/Qwen3-4B-4bit uvicorn langserve_app:app --workers 2
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langserve import add_routes

from langchain_car_vllm import ChatVllmMlx

llm = ChatVllmMlx(
    model=os.environ.get("MODEL", "mlx-community/Qwen3-4B-4bit"), temperature=0, max_tokens=80
)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Load the model before the first request; every worker asks, one server starts."""
    await llm.awarm_up()
    yield


app = FastAPI(title="A local model", lifespan=lifespan)
chain = ChatPromptTemplate.from_template("{question}") | llm | StrOutputParser()
add_routes(app, chain, path="/chat")
