"""Loading a model that was written down: nothing of it may take a key or run code."""

from collections.abc import Iterable, Mapping
from typing import Any

from langchain_core.load.load import default_init_validator

from langchain_car_vllm.setting_checks import endpoint_url

_REFUSED = {
    "server_env": "it sets variables of the server's process",
    "server_args": "it is a part of the server's command line",
    "default_headers": "it is sent to the endpoint",
    "validate_model_on_init": "it makes a request while loading",
    "extra_body": "it is sent to the endpoint unchecked",
}
_CLASSES = ("ChatVllmMlx", "VllmMlxDecisions", "VllmMlxEmbeddings", "VllmMlxReranker")
_IN_A_CALL = ("extra_headers", "extra_body")
_CONFIGURABLE = (*_REFUSED, "base_url", "fetch_media", "model_kwargs")


def init_validator(class_path: tuple[str, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a serialised model that could take the environment's key, or run code.

    Pass it to LangChain's `load` or `loads`. What LangChain refuses by itself stays refused. Even
    so load only what you wrote yourself or trust.

    Raises:
        ValueError: It names a setting that a stranger must not choose.
    """
    default_init_validator(class_path, kwargs)
    if class_path[-1] not in _CLASSES:
        _check_later(kwargs)
        return
    for name, reason in _REFUSED.items():
        if kwargs.get(name):
            raise ValueError(f"a serialised model may not set `{name}`: {reason}")
    base_url = kwargs.get("base_url")
    if base_url and base_url != endpoint_url():
        raise ValueError(
            "a serialised model may not set `base_url`: the environment's key would go there; "
            "set CAR_VLLM_MLX_BASE_URL to the address if you trust it"
        )
    if kwargs.get("fetch_media"):
        raise ValueError(
            "a serialised model may not set `fetch_media`: it gives access to this machine"
        )
    _refuse_names(kwargs.get("model_kwargs"), _IN_A_CALL)


def _check_later(kwargs: Mapping[str, Any]) -> None:
    """Refuse what another class, such as a binding, a retry or a chain, gives a model in a call."""
    for name, settings in kwargs.items():
        if isinstance(settings, Mapping):
            _refuse_names(settings, _CONFIGURABLE if name == "fields" else _IN_A_CALL)


def _refuse_names(settings: Any, names: Iterable[str]) -> None:
    """Raise a ValueError where settings hold one of the names, or are something else."""
    if not isinstance(settings, Mapping | None):
        raise ValueError("the settings of a serialised model must be a dictionary")  # noqa: TRY004
    for name in names:
        if name in (settings or {}):
            raise ValueError(f"a serialised model may not set `{name}`, nor let it be set later")
