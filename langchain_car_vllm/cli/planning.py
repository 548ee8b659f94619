"""What would be served, and whether it fits: from the files that are here, else from the name."""

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from langchain_car_vllm.models import (
    ModelFacts,
    ModelId,
    family_facts,
    find_snapshot,
    read_model_facts,
)
from langchain_car_vllm.models.compatibility import facts_for_version
from langchain_car_vllm.models.hub import HubFile
from langchain_car_vllm.models.remote_code import is_trusted
from langchain_car_vllm.models.servable import check_servable
from langchain_car_vllm.models.snapshot import hub_cache, served_source
from langchain_car_vllm.models.weights import weight_names
from langchain_car_vllm.runtime import installed_version, resolve_existing
from langchain_car_vllm.server import directory_of
from langchain_car_vllm.server.command import Launch, launch_for, serve_arguments
from langchain_car_vllm.server.memory import budget_bytes, reserving
from langchain_car_vllm.server.spec import ServerSpec

_MB = 1_000_000


class Plan(NamedTuple):
    """A server that is not started.

    Attributes:
        model: What the user named.
        directory: The complete local copy, None where there is none.
        facts: What is known of the model; from its name alone without `directory`.
        launch: How it would be started.
        weights: Bytes on the disk, None where unknown.
        needed: Bytes of memory, None where unknown.
        budget: Bytes that all servers may take together.
        taken: Bytes of them that other servers have set aside.
        disk: Bytes that are free where the model would be downloaded to, None where unknown.
    """

    model: ModelId
    directory: Path | None
    facts: ModelFacts
    launch: Launch
    weights: int | None
    needed: int | None
    budget: int
    taken: int
    disk: int | None

    @property
    def fits_memory(self) -> bool | None:
        """Whether it fits into the budget; None where nobody knows before the download."""
        return None if self.needed is None else self.needed <= self.budget

    @property
    def fits_disk(self) -> bool | None:
        """Whether it is here or can be downloaded; None where nobody knows."""
        if self.directory is not None:
            return True
        if self.weights is None or self.disk is None:
            return None
        return self.weights <= self.disk

    def command(self, spec: ServerSpec) -> str:
        """Return the command line for a shell; the key and the port are not on it."""
        arguments = serve_arguments(spec, self.launch, 0)
        arguments[arguments.index("--port") + 1] = "PORT"
        return shlex.join([str(resolve_existing() or "vllm-mlx"), *arguments])


def plan_for(model: ModelId, spec: ServerSpec, files: Sequence[HubFile] = ()) -> Plan:
    """Return how a model would be served, without downloading or starting anything.

    Args:
        model: What the user named.
        spec: How it is to be served.
        files: What the Hub lists, where it was asked: its sizes are better than the catalog's.

    Raises:
        ConfigurationError: The model's own files cannot be read.
    """
    trust = is_trusted(spec.server_args)
    directory = find_snapshot(model.source, spec.revision, trust=trust)
    if directory is not None:
        check_servable(directory, model.name, trust=trust)
        facts = read_model_facts(directory, model.name, trust=trust)
    else:
        facts = _facts_of_name(model, files)
    runtime = resolve_existing()
    if runtime is not None:
        facts = facts_for_version(facts, installed_version(runtime))
    budget = budget_bytes()
    launch = launch_for(
        spec,
        facts,
        served_source(directory, model.source, spec.revision) if directory else model.source,
        offline=directory is not None,
        budget_bytes=budget,
    )
    weights = facts.weights_bytes or None
    taken = sum(state.reservation for _, state in reserving(directory_of(spec).key))
    return Plan(
        model,
        directory,
        facts,
        launch,
        weights,
        launch.memory.needed if weights else None,
        budget,
        taken,
        _free_disk(),
    )


def _facts_of_name(model: ModelId, files: Sequence[HubFile]) -> ModelFacts:
    family = family_facts(model.name)
    names = weight_names([file.name for file in files], multimodal=bool(family.media))
    listed = sum(file.size for file in files if file.name in names)
    return ModelFacts(
        tool_call_parser=family.tool_call_parser,
        reasoning_parser=family.reasoning_parser if family.thinks else None,
        multimodal=bool(family.media) or "vision" in model.capabilities,
        context_window=model.context_window,
        streams_tool_calls=family.streams_tool_calls,
        weights_bytes=listed or (model.size_mb or 0) * _MB,
        family=family.name,
    )


def _free_disk() -> int | None:
    folder = hub_cache()
    while folder is not None and not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free if folder else None
