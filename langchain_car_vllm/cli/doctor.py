"""`doctor`: what this machine can do, and what is wrong with it."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Literal, NamedTuple

import typer

from langchain_car_vllm.cli import runtime_checks
from langchain_car_vllm.cli.findings import Finding, Warned
from langchain_car_vllm.cli.machine_checks import CHECKS
from langchain_car_vllm.cli.model_selftest import masked, model_selftests, report_lines
from langchain_car_vllm.cli.options import AsJson
from langchain_car_vllm.cli.output import print_json
from langchain_car_vllm.cli.selftest import selftests
from langchain_car_vllm.environment import NO_COLOR
from langchain_car_vllm.errors import CarVllmError
from langchain_car_vllm.server.directory import run_state_error
from langchain_car_vllm.support.printable import printable

_OF_MODEL = ("model build", "simple ", "batched ")
_COLOURS = {"ok": "32", "warning": "33", "failed": "31"}


class _Result(NamedTuple):
    name: str
    verdict: Literal["ok", "warning", "failed"]
    said: str
    hint: str | None = None


def doctor(
    *,
    selftest: Annotated[
        bool,
        typer.Option("--selftest", help="Also start, share, kill and stop a tiny server for real"),
    ] = False,
    model: Annotated[
        bool,
        typer.Option(
            "--model",
            help="With --selftest: also run a small real model on both engines; paths and names "
            "are masked for pasting into an issue",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine.

    Host, uv, runtime, variables, home, locks, ports, processes, memory, models, files,
    certificates, proxies, panics.

    The exit code is 1 where a check failed.
    """
    if model and not selftest:
        raise typer.BadParameter("it only works with --selftest", param_hint="--model")
    results = []
    for found in _results(selftest=selftest, model=model):
        result = _masked(found) if model else found
        results.append(result)
        if not as_json:
            _show(result)
    if as_json:
        print_json([result._asdict() for result in results])
    elif model:
        print("\nTo paste into an issue:\n")
        rows = [(r.name, r.verdict, r.said) for r in results if r.name.startswith(_OF_MODEL)]
        rows += [
            (r.name, r.verdict, r.said if r.verdict != "ok" else "")
            for r in results
            if not r.name.startswith(_OF_MODEL)
        ]
        print("\n".join(map(printable, report_lines(rows))))
    if any(result.verdict == "failed" for result in results):
        raise typer.Exit(1)


def _results(*, selftest: bool, model: bool) -> Iterator[_Result]:
    yield from _run((*CHECKS, *runtime_checks.CHECKS))
    if selftest:
        yield from _run(runtime_checks.TRIALS)
        with selftests() as steps:
            yield from _run(steps)
    if model:
        with model_selftests() as steps:
            yield from _run(steps)


def _run(checks: Iterable[tuple[str, Callable[[], str]]]) -> Iterator[_Result]:
    for name, check in checks:
        try:
            yield _Result(name, "ok", check())
        except Warned as warning:
            yield _Result(name, "warning", warning.said, warning.hint)
        except Finding as finding:
            yield _Result(name, "failed", finding.said, finding.hint)
        except CarVllmError as error:
            yield _Result(name, "failed", error.message, error.hint)
        except Exception as error:  # noqa: BLE001 - the other checks still tell something
            known = run_state_error(error)
            said = known.message if known else f"{type(error).__name__}: {error}"
            yield _Result(name, "failed", said, known.hint if known else None)


def _masked(result: _Result) -> _Result:
    hint = masked(result.hint) if result.hint else None
    return result._replace(said=masked(result.said), hint=hint)


def _show(result: _Result) -> None:
    verdict = result.verdict.ljust(7)
    if sys.stdout.isatty() and not NO_COLOR.read():
        verdict = f"\x1b[{_COLOURS[result.verdict]}m{verdict}\x1b[0m"
    print(f"{verdict}  {result.name}: {printable(result.said)}", flush=True)
    if result.hint:
        print(f"         hint: {printable(result.hint)}", flush=True)
