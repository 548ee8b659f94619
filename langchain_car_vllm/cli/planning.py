"""`show` and `plan`: what is known of a model, and whether and how it would start here."""

import re
import shlex
from typing import Annotated, Any

import typer

from langchain_car_vllm.cli.models import spec_of_any_kind
from langchain_car_vllm.cli.options import (
    AsJson,
    EngineOption,
    ModelArgument,
    Revision,
    ServerArguments,
    checked_by,
    server_of_options,
)
from langchain_car_vllm.cli.output import model_id, print_facts, print_json, say, size
from langchain_car_vllm.endpoint import Parsers
from langchain_car_vllm.errors import (
    CarVllmError,
    ConfigurationError,
    ModelDownloadError,
    RuntimeProvisioningError,
    UnknownModelError,
)
from langchain_car_vllm.models import find_snapshot, parse_model_id
from langchain_car_vllm.runtime import installed_version
from langchain_car_vllm.runtime.host import check_host, current_host
from langchain_car_vllm.runtime.locate import binary_to_launch
from langchain_car_vllm.runtime.metal import known_working_set
from langchain_car_vllm.server.command import serve_arguments
from langchain_car_vllm.server.company import Company, company_of
from langchain_car_vllm.server.plan import Plan, asked_plan, learn_budget, plan_for
from langchain_car_vllm.server.spec import ServerSpec

_TOKENS = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([km]?)", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "k": 1024, "m": 1024**2}
_MOST_TOKENS = 10**9
_UNKNOWN = "unknown until it is downloaded"
_WIRED = (
    "the weights, so requests run one at a time; macOS has panicked with wired memory, and "
    "`CAR_VLLM_MLX_WIRED=0` turns it off"
)
_NO_TOOL_FORMAT = (
    "the server knows no format of this model; calls written as JSON are read, and "
    "`tool_choice` forces one"
)


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


def show(model: ModelArgument, *, revision: Revision = None, as_json: AsJson = False) -> None:
    """Show what is known about a model."""
    found = parse_model_id(model)
    learn_budget()
    directory = find_snapshot(found.source, revision)
    plan_ = plan_for(spec_of_any_kind(found.source, found.name, directory, revision))
    if as_json:
        print_json(_known_facts(plan_))
        return
    _tell_if_estimated(plan_)
    facts, serving = plan_.facts, plan_.launch.serving
    name, source = model_id(plan_.spec.served_name), plan_.spec.source
    is_known = _is_known(plan_)
    rows = {
        "model": name,
        "source": source if source != name else "",
        "family": facts.family or "",
        "weights": size(plan_.weights) if plan_.weights else "",
        "disk": _disk(plan_),
        "memory": _memory(plan_),
        "context": _context(plan_),
        **_way_of_serving(plan_),
        "takes": ", ".join(("text", *(serving.media or ()))) if is_known else "",
        "sampling": ", ".join(f"{name} {value:g}" for name, value in facts.sampling.items()),
    }
    _print_rows(rows)


def plan(
    model: ModelArgument,
    *,
    revision: Revision = None,
    engine: EngineOption = "auto",
    server_arg: ServerArguments = None,
    context: Annotated[
        str | None,
        typer.Option(
            help="Tokens that each conversation needs, such as `64k`", callback=checked_by(tokens)
        ),
    ] = None,
    agents: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="How many conversations run at the same time"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show whether a model would start, and with what context.

    Nothing is downloaded or started; the Hub is asked about a model that is not on this machine.
    The exit code is 1 where it would not, or where `--context` and `--agents` do not fit.
    """
    wanted = _read_company(context, agents)
    try:
        plan_, problem = _hub_plan(server_of_options(model, revision, engine, server_arg))
    except CarVllmError as error:
        if as_json:
            print_json(_refusal_to_json(model, error))
        raise
    company = None if wanted is None else company_of(plan_, wanted[0] or _longest(plan_), wanted[1])
    host = _host_problem()
    here = "need not be asked" if plan_.directory else "has the model"
    verdicts = {
        "host": (host is None, host.message if host else "can run vllm-mlx"),
        "hub": (problem is None, problem.message if problem else here),
        "disk": (plan_.fits_disk, _disk(plan_)),
        "memory": (plan_.fits_memory, _memory(plan_)),
    }
    if company is not None:
        verdicts["company"] = (company.fits, _format_company(company, plan_))
    fits = {name: verdict for name, (verdict, _) in verdicts.items()}
    messages = {name: message for name, (_, message) in verdicts.items()}
    hints = _hints(plan_, problem)
    command = None if False in fits.values() else _command(plan_)
    if as_json:
        told = {"command": command, "fits": fits, "messages": messages, "hints": hints}
        print_json({**_plan_to_json(plan_, company), **told})
    else:
        _tell_if_estimated(plan_)
        rows = {"host": messages["host"], "runtime": _runtime(), **messages}
        rows |= {"context": _context(plan_), **_way_of_serving(plan_), "command": command or ""}
        _print_rows(rows)
        for hint in hints:
            say(f"\nhint: {hint}")
    if command is None:
        raise typer.Exit(1)


def _print_rows(rows: dict[str, str]) -> None:
    """Print what there is to say."""
    print_facts((name, text) for name, text in rows.items() if text)


def _is_known(plan_: Plan) -> bool:
    """Tell whether the model's files or its family say what it can do."""
    return plan_.directory is not None or plan_.facts.family is not None


def _way_of_serving(plan_: Plan) -> dict[str, str]:
    """Return the engine, and how tool calls and thoughts are read."""
    serving = plan_.launch.serving
    engine = serving.engine or "unknown"
    told = {"engine": f"{engine}; {serving.engine_note}" if serving.engine_note else engine}
    if plan_.spec.kind != "chat":
        return told
    if plan_.launch.is_wired:
        told["wired"] = _WIRED
    parsers = serving.parsers or Parsers()
    tools, thoughts = _UNKNOWN, _UNKNOWN
    if _is_known(plan_):
        tools, thoughts = _NO_TOOL_FORMAT, "the model does not think"
    if parsers.tool_call:
        tools = f"read in the `{parsers.tool_call}` format"
    if parsers.tool_call and serving.streams_tool_calls is False:
        tools += "; an answer that may contain one comes whole, not as a stream"
    if parsers.reasoning:
        thoughts = f"read in the `{parsers.reasoning}` format, if the model thinks"
    return told | {"tool calls": tools, "thinking": thoughts}


def _refusal_to_json(model: str, error: CarVllmError) -> dict[str, Any]:
    """Return the plan for what there can be none for: its names and verdicts are the same."""
    return {
        "model": model,
        "command": None,
        "fits": {"model": False},
        "messages": {"model": error.message},
        "hints": [error.hint] if error.hint else [],
    }


def _tell_if_estimated(plan_: Plan) -> None:
    """Say where the facts come from, if not from the model's own files."""
    if plan_.origin in ("catalog", "name"):
        say("not on this machine: the following is known from its name and the catalog")
    elif plan_.origin == "hub":
        say("not on this machine: the following comes from the Hub")


def _known_facts(plan_: Plan) -> dict[str, Any]:
    """Return what is known of a model, by the names of `show --json`."""
    facts = plan_.facts
    return {
        "model": model_id(plan_.spec.served_name),
        "source": plan_.spec.source,
        "directory": str(plan_.directory) if plan_.directory else None,
        "family": facts.family,
        **plan_.launch.serving.to_dict(),
        "takes_media": plan_.launch.serving.multimodal,
        "sampling": facts.sampling,
        "weights_bytes": plan_.weights,
        "memory_bytes": plan_.needed,
        "memory_budget_bytes": plan_.budget,
        "memory_taken_bytes": plan_.taken,
        "fits_memory": plan_.fits_memory,
    }


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
        **_known_facts(plan_),
        "wired": plan_.launch.is_wired,
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
    amount = "size unknown" if plan_.download is None else size(plan_.download)
    wanted = f"to be downloaded, {amount}"
    return wanted if plan_.disk is None else f"{wanted}; {size(plan_.disk)} free"


def _memory(plan_: Plan) -> str:
    budget = size(plan_.budget)
    words = f"{_UNKNOWN}; models here may take {budget}"
    if plan_.fits_memory is not None:
        verdict = "fits" if plan_.fits_memory else "does not fit"
        words = f"{verdict}: {size(plan_.needed)} of {budget}"
    return f"{words}, of which other models have {size(plan_.taken)}" if plan_.taken else words


def _context(plan_: Plan) -> str:
    memory, window = plan_.launch.memory, plan_.facts.context_window
    if plan_.origin == "name" and window is None:
        return _UNKNOWN
    made_for = (
        f"the model was made for {window:,}"
        if window
        else "the model does not say what it was made for"
    )
    if plan_.fits_memory is False:
        return f"none fits; {made_for}"
    if memory.room is None:
        return f"what fits here is unknown; {made_for}"
    together = f", {memory.room:,} in all" if (memory.room or 0) > (memory.context or 0) else ""
    at_once = f"{memory.sequences} at a time" if memory.sequences != 1 else "one at a time"
    return f"{memory.context:,} tokens fit here{together}, {at_once}; {made_for}"


def _format_company(company: Company, plan_: Plan) -> str:
    each = f"{company.context:,} tokens" if company.context > 1 else "the longest context"
    asked = f"{company.agents} x {each}"
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
