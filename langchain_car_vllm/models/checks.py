"""What can be known of a model's chances before anything is installed, fetched or launched."""

import shutil

from langchain_car_vllm.errors import InsufficientMemoryError, UnknownModelError
from langchain_car_vllm.models.download import check_may_download, explained, measure_download
from langchain_car_vllm.models.facts import read_model_facts
from langchain_car_vllm.models.hub import HubModel, ask_hub_model
from langchain_car_vllm.models.ids import ModelId
from langchain_car_vllm.models.servable import check_servable
from langchain_car_vllm.models.snapshot import find_snapshot, hub_cache

_GB = 1e9


def check_model(
    model: ModelId,
    revision: str | None = None,
    *,
    auto_pull: bool = True,
    budget_bytes: int | None = None,
    trust: bool = False,
) -> None:
    """Check that a model can be had and will fit; fetches no file and starts nothing.

    A copy on this machine is looked at; else the Hub is asked, which takes one or two requests of
    at most ten seconds each.

    Args:
        model: What is to be served.
        revision: A branch, tag or commit; None is the default branch.
        auto_pull: Whether it may be downloaded.
        budget_bytes: Memory that all models together may take, None for no limit.
        trust: Whether the user trusts code that the model brings.

    Raises:
        UnknownModelError: There is no such model.
        UnservableModelError: The server cannot load what is there.
        ModelDownloadError: It is not here and cannot be fetched; says why and what to do.
        InsufficientMemoryError: Its weights alone exceed the budget.
    """
    snapshot = find_snapshot(model.source, revision, trust=trust)
    if snapshot is not None:
        check_servable(snapshot, model.name, trust=trust)
        weights = read_model_facts(snapshot, model.name, trust=trust).weights_bytes
    elif model.is_local:
        raise UnknownModelError(model.name, f"`{model.source}` holds no `config.json`")
    else:
        check_may_download(model.source, auto_pull=auto_pull)
        listed = ask_hub_model(model.source, revision, trust=trust)
        _check_disk(model.source, revision, listed)
        weights = sum(file.size for file in listed.loaded)
    if budget_bytes is not None:
        _check_memory(model, weights, budget_bytes)


def _check_disk(source: str, revision: str | None, listed: HubModel) -> None:
    cache = hub_cache()
    if cache is None:
        return
    folder = next(path for path in (cache, *cache.parents) if path.exists())
    done, _ = measure_download(source, revision)
    needed = max(0, sum(file.size for file in listed.fetched) - done)
    free = shutil.disk_usage(folder).free
    if needed > free:
        verdict = {"kind": "disk", "needed": needed, "free": free, "folder": str(cache)}
        raise explained(source, revision, verdict)


def _check_memory(model: ModelId, weights: int, budget: int) -> None:
    if weights > budget:
        raise InsufficientMemoryError(
            f"the weights of `{model.name}` take {weights / _GB:.1f} GB and all models together "
            f"may take {budget / _GB:.1f} GB",
            hint="choose a smaller model or quantisation, or raise CAR_VLLM_MLX_MEMORY_GB",
        )
