"""Whether and how a model would be served here: one answer for everybody who asks.

`validate_model_on_init`, `car-vllm plan` and `show`, and the supervisor before the download and
after it all make a `Plan`, from the best that is known: the model's files, else what the Hub lists,
else the catalog, else the name.
"""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from langchain_car_vllm.errors import InsufficientMemoryError, UnknownModelError
from langchain_car_vllm.models import ModelFacts
from langchain_car_vllm.models.adapter import check_adapter, check_adapter_alone, find_adapter
from langchain_car_vllm.models.catalog import small_sibling
from langchain_car_vllm.models.compatibility import facts_for_version
from langchain_car_vllm.models.config import is_multimodal
from langchain_car_vllm.models.cross_encoder import check_cross_encoder
from langchain_car_vllm.models.download import check_may_download, measure_download
from langchain_car_vllm.models.download_diagnosis import download_error
from langchain_car_vllm.models.downloader import RESERVE
from langchain_car_vllm.models.hub_listing import HubListing
from langchain_car_vllm.models.model_files import load_object
from langchain_car_vllm.models.servable import check_servable
from langchain_car_vllm.models.snapshot import hub_cache
from langchain_car_vllm.models.speculation import (
    MTP,
    check_draft,
    check_draft_by_config,
    find_draft,
)
from langchain_car_vllm.models.text_writer import check_writes_text
from langchain_car_vllm.paths import existing_part
from langchain_car_vllm.runtime import installed_version, interpreter_of
from langchain_car_vllm.runtime.locate import binary_to_launch, overriding_binary
from langchain_car_vllm.runtime.metal_question import learn_working_set
from langchain_car_vllm.server.command import Launch
from langchain_car_vllm.server.known_model import Origin, find_facts, plan_launch
from langchain_car_vllm.server.memory import Memory, budget_bytes
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.supervision import supervised_servers
from langchain_car_vllm.support.process_state import import_whole

_GB = 1e9


@dataclass(frozen=True, slots=True)
class Plan:
    """A server that is not started.

    Attributes:
        spec: What the user wants.
        origin: Where what is known of the model comes from.
        directory: The complete local copy, None where there is none.
        facts: What is known of the model.
        launch: How it would be started, with the memory that it would set aside.
        weights: Bytes that the server loads, None where unknown.
        budget: Bytes that all servers may take together.
        taken: Bytes of them that other servers have set aside.
        download: Bytes that are still to be downloaded, None where unknown.
        disk: Bytes that are free where the model would be downloaded to, None where unknown.
    """

    spec: ServerSpec
    origin: Origin
    directory: Path | None
    facts: ModelFacts
    launch: Launch
    weights: int | None
    budget: int
    taken: int
    download: int | None
    disk: int | None

    @property
    def needed(self) -> int | None:
        """Bytes of memory that are set aside, None where unknown."""
        return None if self.weights is None else self.launch.memory.needed

    @property
    def fits_memory(self) -> bool | None:
        """Whether it fits into the budget; None where nobody knows before the download."""
        return None if self.needed is None else self.needed <= self.budget

    @property
    def fits_disk(self) -> bool | None:
        """Whether it is here or can be downloaded; None where nobody knows."""
        if self.download == 0:
            return True
        if self.download is None or self.disk is None:
            return None
        return self.download + RESERVE <= self.disk

    def check(self) -> None:
        """Refuse what is known not to fit; room on the disk helps nobody who lacks the memory.

        Raises:
            InsufficientMemoryError: It needs more memory than all servers may take.
            ModelDownloadError: The disk is too small.
        """
        self.check_memory()
        self.check_disk()

    def check_disk(self) -> None:
        """Refuse what is known not to fit on the disk.

        Raises:
            ModelDownloadError: The disk is too small.
        """
        if self.fits_disk is False:
            needed, free = self.download or 0, self.disk or 0
            verdict = {
                "kind": "disk",
                "needed": needed if needed > free else needed + RESERVE,
                "free": free,
                "folder": str(hub_cache()),
            }
            raise download_error(self.spec.source, self.spec.revision, verdict, task="ask")

    def check_memory(self) -> None:
        """Refuse what is known not to fit into memory.

        Raises:
            InsufficientMemoryError: It needs more than all servers may take.
        """
        if self.fits_memory is False:
            raise insufficient_memory(self.spec, self.launch.memory, self.budget)


def insufficient_memory(spec: ServerSpec, memory: Memory, budget: int) -> InsufficientMemoryError:
    """Return the error for a model that can never fit, with the numbers and the cure."""
    smaller = small_sibling(spec.source)
    instead = f"use `{smaller}`" if smaller else "choose a model that `car-vllm recommend` lists"
    return InsufficientMemoryError(
        f"`{spec.served_name}` needs {memory.needed / _GB:.1f} GB, of which its weights take "
        f"{memory.weights / _GB:.1f} GB, but all models together may take {budget / _GB:.1f} GB",
        hint=f"{instead}, or raise CAR_VLLM_MLX_MEMORY_GB",
    )


def learn_budget() -> None:
    """Have Metal say what it gives where an install can ask: no rule may refuse what fits."""
    if (binary := binary_to_launch()) is not None:
        learn_working_set(binary)


def asked_plan(spec: ServerSpec) -> Plan:
    """Return the plan for a model that may have to be downloaded; asks the Hub where it would be.

    A few files of settings are fetched and no weights, and nothing is started.

    Raises:
        UnknownModelError: There is no such model.
        UnservableModelError: The server cannot load what is there.
        ModelDownloadError: It is not here and cannot be fetched; says why and what to do.
    """
    learn_budget()
    if spec.find_snapshot() is not None:
        return plan_for(spec)
    check_may_fetch(spec)
    # A supervisor, which makes plans too, must not even import what asks.
    import_whole("langchain_car_vllm.models.hub")
    from langchain_car_vllm.models.hub import ask_hub_model  # noqa: PLC0415

    return plan_for(spec, ask_hub_model(spec.source, spec.revision, trust=spec.trust))


def check_may_fetch(spec: ServerSpec) -> None:
    """Refuse a model that is not here and may not be fetched.

    Raises:
        UnknownModelError: Its directory is gone.
        ModelDownloadError: It may not be downloaded.
    """
    if spec.source.startswith("/"):
        raise UnknownModelError(spec.served_name, f"`{spec.source}` has no `config.json`")
    check_may_download(spec.source, auto_pull=spec.auto_pull)


def plan_for(
    spec: ServerSpec,
    hub: HubListing | None = None,
    *,
    version: str | None = None,
    binary: Path | None = None,
) -> Plan:
    """Return how a model would be served, without asking, downloading or starting anything.

    Args:
        spec: How it is to be served.
        hub: What the Hub says of it, where it was asked.
        version: Of the `vllm-mlx` that will run; by default of the one that would be found.
        binary: That `vllm-mlx`; by default the one that would be found.

    Raises:
        ServerStartError: The user wants an engine that this install would answer wrongly with.
        UnservableModelError: The server cannot load what is there.
        UntrustedCodeError: The model brings code that nobody trusts.
    """
    origin, directory, facts = find_facts(spec, hub)
    if directory is not None:
        check_servable(directory, spec.served_name, trust=spec.trust)
    check_kind(spec, directory, hub)
    binary = binary or binary_to_launch()
    if version is None and binary is not None:
        version = installed_version(binary)
    facts = facts_for_version(facts, version)
    budget = budget_bytes()
    return Plan(
        spec,
        origin,
        directory,
        facts,
        plan_launch(
            spec,
            facts,
            directory,
            budget,
            version=version,
            mlx_vlm=installed_version(binary, "mlx_vlm") if binary else None,
            python=str(interpreter_of(binary) or "") if binary else None,
        ),
        facts.weights_bytes or None,
        budget,
        taken_bytes(spec),
        0 if directory is not None else _download_bytes(spec, facts, hub),
        _free_disk(),
    )


def check_kind(spec: ServerSpec, directory: Path | None, hub: HubListing | None = None) -> None:
    """Refuse a model that is known not to do what it is to be served for.

    Raises:
        UntrustedCodeError: Its draft model brings code that nobody trusts.
        UnservableModelError: It is another kind of model, or its adapter or its draft does not
            belong to it.
    """
    _check_draft(spec, directory, hub)
    _check_adapter(spec, directory)
    check = _KIND_CHECKS.get(spec.kind)
    if check is not None and directory is not None:
        check(load_object(directory / "config.json"), spec.served_name)
    elif check is not None and hub is not None:
        check(hub.config, spec.served_name)


_KIND_CHECKS = {"chat": check_writes_text, "reranker": check_cross_encoder}


def _check_draft(spec: ServerSpec, directory: Path | None, hub: HubListing | None) -> None:
    draft, name, engine = spec.draft, spec.served_name, spec.engine
    if draft is None:
        return
    if directory is not None:
        check_draft(draft, directory, name, engine=engine, trust=spec.trust)
        return
    if hub is not None:
        check_draft_by_config(draft, hub.config, name, engine=engine)
    if draft != MTP:
        find_draft(draft)


def _check_adapter(spec: ServerSpec, directory: Path | None) -> None:
    adapter = find_adapter(spec.adapter) if spec.adapter is not None else None
    if adapter is None:
        return
    if directory is None:
        check_adapter_alone(adapter)
    else:
        config = load_object(directory / "config.json")
        multimodal = is_multimodal(config) or "--mllm" in spec.server_args
        check_adapter(adapter, directory, multimodal=multimodal)


def taken_bytes(spec: ServerSpec) -> int:
    """Return what servers but this one have set aside."""
    binary = overriding_binary()
    key = spec.key(str(binary) if binary else None)
    return sum(
        state.reservation for _, state in supervised_servers(key, lambda state: state.reservation)
    )


def _download_bytes(spec: ServerSpec, facts: ModelFacts, hub: HubListing | None) -> int | None:
    """Return what is still to be fetched, None where unknown."""
    whole = hub.fetched if hub else facts.weights_bytes
    done, _ = measure_download(spec.source, spec.revision)
    # Nothing is known of the files that a former download left, but that they are not all.
    return max(1, whole - done) if whole else None


def _free_disk() -> int | None:
    folder = hub_cache()
    with suppress(OSError):
        return shutil.disk_usage(existing_part(folder)).free if folder else None
    return None
