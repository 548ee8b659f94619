"""What is known of a model, its files or less, and how a server of it would be launched.

It says nothing of what stands in the way, so that constructing a model imports this alone; whether
it can be served here is the question of a `Plan`.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from langchain_car_vllm.endpoint import Parsers, Serving
from langchain_car_vllm.environment import inherited_environment
from langchain_car_vllm.models import ModelFacts, family_facts, read_model_facts
from langchain_car_vllm.models.catalog import catalog, shipped_config
from langchain_car_vllm.models.facts import facts_of_config
from langchain_car_vllm.models.snapshot import served_source
from langchain_car_vllm.models.speculation import draft_bytes, draft_to_serve
from langchain_car_vllm.runtime.metal import likely_working_set
from langchain_car_vllm.server.command import Launch, launch_for
from langchain_car_vllm.server.memory import Memory, budget_bytes
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.wiring import wiring_mode

if TYPE_CHECKING:
    from langchain_car_vllm.models.hub_listing import HubListing

_MB = 1_000_000

Origin = Literal["files", "hub", "catalog", "name"]


def fitting_context(spec: ServerSpec) -> int | None:
    """Return how many tokens a conversation can have on this machine, as far as is known here.

    The model's own limit where its layers are unknown, None where that is unknown too; the least
    that a server would have where the model does not fit.

    Raises:
        ConfigurationError: The model's own files cannot be read.
    """
    _, directory, facts = find_facts(spec, None)
    return plan_launch(spec, facts, directory, budget_bytes()).memory.context


def find_facts(
    spec: ServerSpec, hub: "HubListing | None"
) -> tuple[Origin, Path | None, ModelFacts]:
    """Return what is known of a model, from the best source."""
    directory = spec.find_snapshot()
    if directory is not None:
        return "files", directory, read_model_facts(directory, spec.served_name, trust=spec.trust)
    if hub is not None:
        facts = _facts_of_config(spec, hub.config)._replace(weights_bytes=hub.weights)
        return "hub", None, facts
    shipped = _shipped_facts(spec)
    return ("catalog", None, shipped) if shipped else ("name", None, _facts_of_name(spec))


def plan_launch(
    spec: ServerSpec,
    facts: ModelFacts,
    directory: Path | None,
    budget: int,
    *,
    version: str | None = None,
    mlx_vlm: str | None = None,
    python: str | None = None,
) -> Launch:
    """Return how a server would be launched, with the memory that it would set aside.

    Args:
        spec: What the user wants.
        facts: What is known of the model.
        directory: The complete local copy, None where there is none.
        budget: Bytes that all servers may take together.
        version: Of the `vllm-mlx` that will run, None where unknown.
        mlx_vlm: The version of mlx-vlm in its install, None where unknown.
        python: The install's Python, None where it is not known which.

    Raises:
        ServerStartError: The user wants an engine that this install would answer wrongly with.
    """
    here = directory is not None
    model = served_source(directory, spec.source, spec.revision) if directory else spec.source
    loaded = facts.weights_bytes * facts.widening
    if spec.kind != "chat":
        serving = Serving(version=version, engine="simple", parsers=Parsers())
        return Launch(model, here, serving, memory=Memory(loaded))
    facts = facts._replace(weights_bytes=loaded + draft_bytes(spec.draft))
    launch = launch_for(
        spec,
        facts,
        model,
        offline=here,
        budget_bytes=budget,
        version=version,
        mlx_vlm=mlx_vlm,
        python=python,
        wiring=wiring_mode(spec, inherited_environment()),
        working_set=likely_working_set(),
    )
    serving = replace(launch.serving, draft=draft_to_serve(spec.draft))
    return launch._replace(serving=serving)


def _facts_of_config(spec: ServerSpec, config: dict[str, object]) -> ModelFacts:
    """Return what a `config.json` alone tells, and the family's name."""
    facts = facts_of_config(config, spec.served_name)
    family = family_facts(spec.served_name)
    return facts._replace(reasoning_parser=family.reasoning_parser if family.thinks else None)


def _shipped_facts(spec: ServerSpec) -> ModelFacts | None:
    """Return what the package itself knows of a model."""
    if (entry := catalog().by_repository(spec.source)) is not None:
        return _facts_of_config(spec, entry.config)._replace(
            multimodal="vision" in entry.capabilities,
            context_window=entry.context_window,
            weights_bytes=entry.size_mb * _MB,
        )
    if (shipped := shipped_config(spec.source)) is not None:
        config, size_mb = shipped
        return _facts_of_config(spec, config)._replace(weights_bytes=size_mb * _MB)
    return None


def _facts_of_name(spec: ServerSpec) -> ModelFacts:
    family = family_facts(spec.served_name)
    return ModelFacts(
        tool_call_parser=family.tool_call_parser,
        reasoning_parser=family.reasoning_parser if family.thinks else None,
        multimodal=bool(family.media),
        context_window=None,
        family=family.name,
    )
