"""LangChain chat model that installs, starts and supervises `vllm-mlx` on first use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_car_vllm.chat_models import ChatVllmMlx
    from langchain_car_vllm.embeddings import VllmMlxEmbeddings

__all__ = ["ChatVllmMlx", "VllmMlxEmbeddings", "__version__"]

_HOMES = {
    "ChatVllmMlx": "langchain_car_vllm.chat_models",
    "VllmMlxEmbeddings": "langchain_car_vllm.embeddings",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that the supervisor never pays for LangChain."""
    if name == "__version__":
        from langchain_car_vllm.version import VERSION  # noqa: PLC0415

        return VERSION
    if name in _HOMES:
        from importlib import import_module  # noqa: PLC0415

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
