"""Whether several long conversations fit a plan together, and what would. Pure."""

from dataclasses import dataclass, replace

from langchain_car_vllm.models.catalog import small_sibling
from langchain_car_vllm.server.command import launch_for
from langchain_car_vllm.server.plan import Plan

# What 4-bit weights take of those at 16 and at 8 bits, scales included.
_SHARES_OF_4_BIT = {16: 4.5 / 16, 8: 4.5 / 8.5, 6: 4.5 / 6.5, 5: 4.5 / 5.5}


@dataclass(frozen=True, slots=True)
class Company:
    """What was asked of a plan, and what it answers.

    Attributes:
        context: Tokens that each conversation is to have.
        agents: Conversations at the same time.
        fits: Whether all of them do; None where the model's layers are unknown.
        largest_context: Tokens that each of so many can have.
        most_agents: How many of such conversations fit.
        model_context: Tokens that the model was made for, None where unknown.
        smaller: The 4-bit repository that would fit, or `a 4-bit one`; None where none would.
    """

    context: int
    agents: int
    fits: bool | None
    largest_context: int | None
    most_agents: int | None
    model_context: int | None
    smaller: str | None


def company_of(plan: Plan, context: int, agents: int) -> Company:
    """Return whether so many conversations of such a length fit a plan."""
    window = plan.facts.context_window
    largest, most = _limits(plan, context, agents)
    if largest is None or most is None or plan.fits_memory is None:
        fits = False if window is not None and context > window else None
        return Company(context, agents, fits, None, None, window, None)
    fits = context <= largest and agents <= most
    smaller = None if fits or (window and context > window) else _smaller(plan, context, agents)
    return Company(context, agents, fits, largest, most, window, smaller)


def _limits(plan: Plan, context: int, agents: int) -> tuple[int | None, int | None]:
    """Return the longest conversations of so many, and the most conversations so long."""
    memory = plan.launch.memory
    if memory.context is None or memory.room is None or memory.sequences is None:
        return None, None
    if plan.fits_memory is False:
        return 0, 0
    together = agents <= memory.sequences
    largest = min(memory.context, memory.room // agents) if together else 0
    most = min(memory.sequences, memory.room // context) if context <= memory.context else 0
    return largest, most


def _smaller(plan: Plan, context: int, agents: int) -> str | None:
    """Return the name of 4-bit weights that would fit where these do not."""
    share = _SHARES_OF_4_BIT.get(plan.facts.bits or 0)
    if share is None or plan.weights is None:
        return None
    loaded = plan.weights * plan.facts.widening
    facts = plan.facts._replace(weights_bytes=int(loaded * share), bits=4)
    launch = launch_for(
        plan.spec, facts, plan.launch.model, offline=False, budget_bytes=plan.budget
    )
    small = replace(plan, facts=facts, launch=launch, weights=facts.weights_bytes)
    if not company_of(small, context, agents).fits:
        return None
    return small_sibling(plan.spec.source) or "a 4-bit quantisation of it"
