"""`recommend`: which model for this machine's memory."""

from typing import Annotated, Literal, NamedTuple

import typer

from langchain_car_vllm.cli.options import AsJson
from langchain_car_vllm.cli.output import print_json, print_table, say, size
from langchain_car_vllm.environment import inherited_environment
from langchain_car_vllm.errors import ConfigurationError, InsufficientMemoryError
from langchain_car_vllm.models import parse_model_id
from langchain_car_vllm.models.catalog import Recommendation, recommendations
from langchain_car_vllm.models.kv_cache import KvCache
from langchain_car_vllm.runtime.metal import likely_working_set
from langchain_car_vllm.server.memory import budget_bytes, memory_for
from langchain_car_vllm.server.plan import Plan, learn_budget, plan_for
from langchain_car_vllm.server.spec import Kind, ServerSpec
from langchain_car_vllm.server.wiring import wired_bytes, wiring_mode

_MB = 1_000_000
_TYPICAL = KvCache(per_token=144_000)
"""What a token takes where a model's layers are not known: as much as with Qwen3-4B and 8B."""
_WINDOW = 32_768
_EMBEDDING_SHARE = 1.2
"""What a model of embeddings takes, as a share of its weights."""
Task = Literal["chat", "agent", "code", "vision", "embed"]


class _Verdict(NamedTuple):
    """What a candidate means for this machine.

    Attributes:
        model: Its id.
        download_bytes: What is still to be fetched.
        memory_bytes: What it would set aside.
        estimated: Whether that is a guess from its size alone.
        context: Tokens of a conversation that fit here, None where unknown.
        fits: Whether it fits into the budget.
        wired: Whether its weights would be wired in memory.
        why: What speaks for it.
    """

    model: str
    download_bytes: int
    memory_bytes: int
    estimated: bool
    context: int | None
    fits: bool
    wired: bool
    why: str


def recommend(
    *,
    task: Annotated[Task, typer.Option(help="What the model is for")] = "chat",
    as_json: AsJson = False,
) -> None:
    """List the models that suit this machine, best first.

    Those that would be wired come last. Nothing is downloaded or asked. The exit code is 1 where
    none fits.
    """
    learn_budget()
    budget = budget_bytes()
    verdicts = [
        _judge(candidate, budget) for candidate in recommendations() if task in candidate.tasks
    ]
    fitting = sorted((v for v in verdicts if v.fits), key=lambda verdict: verdict.wired)
    if as_json:
        print_json([verdict._asdict() for verdict in fitting])
    if not fitting:
        least = min(verdict.memory_bytes for verdict in verdicts)
        raise InsufficientMemoryError(
            f"no model for `{task}` fits into {size(budget)}; the smallest needs {size(least)}",
            hint="use a Mac with more memory, or raise CAR_VLLM_MLX_MEMORY_GB",
        )
    if as_json:
        return
    header = ("MODEL", "DOWNLOAD", "MEMORY", "CONTEXT", "WHY")
    print_table(header, [_row(verdict) for verdict in fitting])
    left_out = len(verdicts) - len(fitting)
    needing_more = f"; {left_out} that need more are left out" if left_out else ""
    say(f"\nmodels on this machine may take {size(budget)} together{needing_more}")
    if any(verdict.estimated for verdict in fitting):
        say("~ estimated from the size alone; `car-vllm plan MODEL` asks the Hub and knows more")
    if any(verdict.wired for verdict in fitting):
        say("wired, and therefore last: macOS has panicked with wired memory")
    say("how fast and how good each is here is not known; `car-vllm bench MODEL` measures one")


def _judge(candidate: Recommendation, budget: int) -> _Verdict:
    found = parse_model_id(candidate.model)
    kind: Kind = "embeddings" if "embed" in candidate.tasks else "chat"
    spec = ServerSpec(found.source, found.name, kind=kind)
    plan, weights = _plan(spec), candidate.size_mb * _MB
    mode = wiring_mode(spec, inherited_environment())
    is_wired = bool(kind == "chat" and wired_bytes(weights, mode, likely_working_set()))
    memory = _guess(weights, kind, budget, alone=is_wired)
    needed = None if plan is None else plan.needed
    fits = (needed or memory) <= budget
    return _Verdict(
        candidate.model,
        0 if plan is not None and plan.directory else weights,
        needed or memory,
        needed is None,
        plan.launch.memory.context if plan is not None and needed and fits else None,
        fits,
        is_wired if plan is None or needed is None else plan.launch.is_wired,
        candidate.why,
    )


def _plan(spec: ServerSpec) -> Plan | None:
    """Return the plan for a model, None where what is here of it cannot be served."""
    try:
        return plan_for(spec)
    except ConfigurationError as error:
        is_private = isinstance(error.__cause__, PermissionError)
        cure = error.hint if is_private else f"`car-vllm rm {spec.source}` removes it"
        say(f"{error.message}; {cure}\n")
        return None


def _guess(weights: int, kind: Kind, budget: int, *, alone: bool) -> int:
    """Return what a model takes that the plan knows no layers of."""
    if kind == "embeddings":
        return int(weights * _EMBEDDING_SHARE)
    return memory_for(
        weights, _TYPICAL, _WINDOW, batched=True, chunked=False, budget=budget, alone=alone
    ).least_to_start


def _row(verdict: _Verdict) -> tuple[str, ...]:
    memory = f"~{size(verdict.memory_bytes)}" if verdict.estimated else size(verdict.memory_bytes)
    return (
        verdict.model,
        size(verdict.download_bytes) if verdict.download_bytes else "is here",
        memory,
        f"{verdict.context:,}" if verdict.context else "-",
        f"{verdict.why}; wired, one request at a time" if verdict.wired else verdict.why,
    )
