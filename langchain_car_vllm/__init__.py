"""LangChain chat model that installs, starts and supervises `vllm-mlx` on first use."""

import os
from importlib import import_module
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

from langchain_car_vllm import errors

if TYPE_CHECKING:
    from langchain_car_vllm.chat_models import ChatVllmMlx
    from langchain_car_vllm.decisions import VllmMlxDecisions
    from langchain_car_vllm.embeddings import VllmMlxEmbeddings
    from langchain_car_vllm.errors import *  # noqa: F403
    from langchain_car_vllm.progress import Progress
    from langchain_car_vllm.registration import register
    from langchain_car_vllm.reranker import VllmMlxReranker
    from langchain_car_vllm.support.user_warnings import (
        CutOffCallWarning,
        EmptyAnswerWarning,
        InvalidCallWarning,
        UnlabelledAnswerWarning,
        UnsentContentWarning,
    )

    __version__: str

__all__ = ["ChatVllmMlx", "Progress", "VllmMlxEmbeddings", "VllmMlxReranker"]
__all__ += ["__version__", "errors", "register"]
__all__ += [
    "CutOffCallWarning",
    "EmptyAnswerWarning",
    "InvalidCallWarning",
    "UnlabelledAnswerWarning",
    "UnsentContentWarning",
]
__all__ += errors.__all__

# Looked for without an import; who installs it in a way of his own has a new one.
_core = PathFinder.find_spec("langchain_core")
if _core is None or any(
    os.path.isdir(os.path.join(folder, "decisions"))  # noqa: PTH112, PTH118 - pathlib takes longer
    for folder in _core.submodule_search_locations or ()
):
    __all__ += ["VllmMlxDecisions"]

_HOMES = {
    "ChatVllmMlx": "langchain_car_vllm.chat_models",
    "Progress": "langchain_car_vllm.progress",
    "VllmMlxDecisions": "langchain_car_vllm.decisions",
    "VllmMlxEmbeddings": "langchain_car_vllm.embeddings",
    "VllmMlxReranker": "langchain_car_vllm.reranker",
    "register": "langchain_car_vllm.registration",
    **{
        name: "langchain_car_vllm.support.user_warnings"
        for name in __all__
        if name.endswith("Warning")
    },
    **dict.fromkeys(errors.__all__, "langchain_car_vllm.errors"),
}


if not TYPE_CHECKING:  # a name that is none is an error in an editor, too

    def __getattr__(name: str) -> Any:
        """Import the public names on first use, so that the supervisor never pays for LangChain."""
        if name == "__version__":
            from langchain_car_vllm.version import VERSION  # noqa: PLC0415

            return VERSION
        if name == "VllmMlxDecisions" and name not in __all__:
            raise ImportError("VllmMlxDecisions needs langchain-core 1.8 or newer", name=__name__)
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
