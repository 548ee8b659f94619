"""`car-vllm install` and `car-vllm pull`: what a first call would do, done beforehand."""

import sys
from contextlib import closing
from typing import Annotated

import typer

from langchain_car_vllm.display import Display
from langchain_car_vllm.models import find_snapshot, parse_model_id
from langchain_car_vllm.models.download import check_may_download
from langchain_car_vllm.models.fetch import fetch_model
from langchain_car_vllm.runtime import install_runtime, resolve_existing, upgrade_runtime


def install(
    *,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Move to the versions that this package has locked")
    ] = False,
) -> None:
    """Install the `vllm-mlx` runtime where it is missing, and print where it is."""
    with closing(Display("vllm-mlx")) as display:
        change = upgrade_runtime if upgrade else install_runtime
        runtime = change(on_progress=display)
    print(runtime.server)
    print(f"vllm-mlx {runtime.version}", file=sys.stderr)
    used = resolve_existing()
    if used is not None and used != runtime.server:
        print(
            f"\nhint: `{used}` is found before it and goes on being used; upgrade or remove it",
            file=sys.stderr,
        )


def pull(
    model: Annotated[str, typer.Argument(help="The model id, as the code names it")],
    *,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit")] = None,
) -> None:
    """Download a model, and print where it is."""
    found = parse_model_id(model)
    path = find_snapshot(found.source, revision)
    if path is None:
        check_may_download(found.source)
        with closing(Display(found.name)) as display:
            runtime = install_runtime(on_progress=display)
            path = fetch_model(runtime, found.source, revision, on_progress=display)
    print(path)
