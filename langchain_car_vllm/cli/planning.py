"""`plan`: whether and how a model would start, and the context and company that fit."""

import re
import shlex
from typing import Annotated, Any

import typer

from langchain_car_vllm.cli.models import known_facts, tell_if_estimated
from langchain_car_vllm.cli.options import (
    AsJson,
    EngineOption,
    ModelArgument,
    Revision,
    ServerArguments,
    checked_by,
    server_of_options,
)
from langchain_car_vllm.cli.output import print_facts, print_json, say, size
from langchain_car_vllm.errors import (
    CarVllmError,
    ConfigurationError,
    ModelDownloadError,
    RuntimeProvisioningError,
    UnknownModelError,
)
from langchain_car_vllm.runtime import installed_version
from langchain_car_vllm.runtime.host import check_host, current_host
from langchain_car_vllm.runtime.locate import binary_to_launch
from langchain_car_vllm.runtime.metal import known_working_set
from langchain_car_vllm.server.command import serve_arguments
from langchain_car_vllm.server.company import Company, company_of
from langchain_car_vllm.server.plan import Plan, asked_plan, plan_for
from langchain_car_vllm.server.spec import ServerSpec

_TOKENS = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([km]?)", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "k": 1024, "m": 1024**2}
_MOST_TOKENS = 10**9


def tokens(text: str) -> int:
    """Return a number of tokens, written as a number or with `k` or `m`.

    Raises:
        ConfigurationError: It is not a number, or not a sensible one.
    """
    match = _TOKENS.fullmatch(text.strip().replace("_", ""))
    count = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if not 0 < count <= _MOST_TOKENS:
        raise ConfigurationError(
            f"`--context` must be a number of tokens from 1 to {_MOST_TOKENS}, not `{text}`",
            hint="write a number such as `65536`, or `64k`",
        )
    return count


def plan(
    model: ModelArgument,
    *,
    revision: Revision = None,
    engine: EngineOption = "auto",
    server_arg: ServerArguments = None,
    context: Annotated[
        str | None,
        typer.Option(
            help="Tokens that a conversation is to have, such as `64k`", callback=checked_by(tokens)
        ),
    ] = None,
    agents: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Conversations at the same time")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell whether a model would start, and with what context.

    Nothing is downloaded or started; the Hub is asked about a model that is not here.
    The exit code is 1 where it would not, or where `--context` and `--agents` do not fit.
    """
    wanted = _read_company(context, agents)
    plan_, problem = _hub_plan(server_of_options(model, revision, engine, server_arg))
    company = None if wanted is None else company_of(plan_, wanted[0] or _longest(plan_), wanted[1])
    host = _host_problem()
    verdicts = {
        "host": host is None,
        "hub": problem is None,
        "disk": plan_.fits_disk,
        "memory": plan_.fits_memory,
    }
    if company is not None:
        verdicts["company"] = company.fits
    if as_json:
        told = {"fits": verdicts, "hints": _hints(plan_, problem)}
        print_json({**_plan_to_json(plan_, company), **told})
    else:
        tell_if_estimated(plan_)
        here = "need not be asked" if plan_.directory else "has the model"
        serving = plan_.launch.serving
        parsers = serving.to_dict()
        print_facts(
            [
                ("host", host.message if host else "can run vllm-mlx"),
                ("runtime", _runtime()),
                ("hub", problem.message if problem else here),
                ("disk", _disk(plan_)),
                ("memory", _memory(plan_)),
                ("context", _context(plan_)),
                *([] if company is None else [("company", _format_company(company, plan_))]),
                ("engine", serving.engine or "unknown"),
                ("tool calls", parsers["tool_call_parser"] or "no parser"),
                ("thinking", parsers["reasoning_parser"] or "no parser"),
                *([] if False in verdicts.values() else [("command", _command(plan_))]),
            ]
        )
        for hint in _hints(plan_, problem):
            say(f"\nhint: {hint}")
    if False in verdicts.values():
        raise typer.Exit(1)


def _read_company(context: str | None, agents: int | None) -> tuple[int | None, int] | None:
    if context is None and agents is None:
        return None
    return None if context is None else tokens(context), agents or 1


def _longest(plan_: Plan) -> int:
    """Return the longest context that the plan has."""
    return plan_.launch.memory.context or 1


def _hub_plan(spec: ServerSpec) -> tuple[Plan, CarVllmError | None]:
    """Return the plan, and why the model cannot be had where that is so."""
    try:
        return asked_plan(spec), None
    except (ModelDownloadError, UnknownModelError) as error:
        return plan_for(spec), error


def _plan_to_json(plan_: Plan, company: Company | None) -> dict[str, Any]:
    used = binary_to_launch()
    memory = plan_.launch.memory
    told = {
        **known_facts(plan_),
        "memory_parts_bytes": {
            "weights": memory.weights,
            "prefill": memory.prefill,
            "prompt_cache": memory.cache,
            "conversations": memory.kv,
        },
        "runtime": str(used) if used else None,
        "runtime_version": installed_version(used) if used else None,
        "download_bytes": plan_.download,
        "disk_free_bytes": plan_.disk,
        "command": _command(plan_),
    }
    if company is not None:
        told["company"] = {
            "context": company.context,
            "agents": company.agents,
            "largest_context": company.largest_context,
            "most_agents": company.most_agents,
            "smaller_model": company.smaller,
        }
    return told


def _command(plan_: Plan) -> str:
    """Return the command line for a shell; the key and the port are not on it."""
    arguments = serve_arguments(plan_.spec, plan_.launch, 0, known_working_set())
    arguments[arguments.index("--port") + 1] = "PORT"
    return shlex.join([str(binary_to_launch() or "vllm-mlx"), *arguments])


def _host_problem() -> CarVllmError | None:
    try:
        check_host(current_host())
    except RuntimeProvisioningError as error:
        return error
    return None


def _hints(plan_: Plan, hub: CarVllmError | None) -> list[str]:
    """Return what to do about each thing that stands in the way."""
    problems = [_host_problem(), hub]
    for check in (plan_.check_memory, plan_.check_disk):
        try:
            check()
        except CarVllmError as error:
            problems.append(error)
    return [problem.hint for problem in problems if problem is not None and problem.hint]


def _runtime() -> str:
    used = binary_to_launch()
    if used is None:
        return "not installed, the first call installs it"
    return f"vllm-mlx {installed_version(used) or 'of unknown version'} in `{used}`"


def _disk(plan_: Plan) -> str:
    if plan_.directory is not None:
        return f"on this machine, in `{plan_.directory}`"
    amount = "unknown how much" if plan_.download is None else size(plan_.download)
    wanted = f"to be downloaded, {amount}"
    return wanted if plan_.disk is None else f"{wanted}; {size(plan_.disk)} are free"


def _memory(plan_: Plan) -> str:
    budget = size(plan_.budget)
    words = f"unknown until it is downloaded; models here may take {budget}"
    if plan_.fits_memory is not None:
        verdict = "fits" if plan_.fits_memory else "does not fit"
        words = f"{verdict}: {size(plan_.needed)} of {budget}"
    return f"{words}, of which other models have {size(plan_.taken)}" if plan_.taken else words


def _context(plan_: Plan) -> str:
    memory, window = plan_.launch.memory, plan_.facts.context_window
    made_for = f"the model was made for {window:,}" if window else "the model does not say more"
    if plan_.fits_memory is False:
        return f"none fits; {made_for}"
    if memory.room is None:
        return f"unknown what fits here; {made_for}"
    together = f", {memory.room:,} in all" if (memory.room or 0) > (memory.context or 0) else ""
    at_once = f"{memory.sequences} at a time" if memory.sequences != 1 else "one at a time"
    return f"{memory.context:,} tokens fit here{together}, {at_once}; {made_for}"


def _format_company(company: Company, plan_: Plan) -> str:
    asked = f"{company.agents} x {company.context:,} tokens"
    if company.fits is None:
        is_here = plan_.directory is not None
        until = ", since its config.json does not say" if is_here else " until it is downloaded"
        return f"{asked}: unknown{until}"
    if company.fits:
        return f"{asked} fit"
    told = [f"{asked} do not fit"]
    if company.model_context is not None and company.context > company.model_context:
        told.append(f"the model was made for {company.model_context:,}")
    if company.largest_context:
        told.append(f"{company.agents} x {company.largest_context:,} do")
    if company.most_agents:
        told.append(f"{company.most_agents} x {company.context:,} do")
    if company.smaller:
        told.append(f"{company.smaller} would")
    return "; ".join(told)
