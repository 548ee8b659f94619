"""Resolve the managed runtime anew and check that every platform finds wheels for it.

The input is `requirements/runtime/pyproject.toml`; the result is shipped inside the package. The
check resolves the set for each platform without building anything, as a user's machine would.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import uv

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "langchain_car_vllm" / "runtime" / "requirements.lock"
PLATFORMS = ("aarch64-apple-darwin", "x86_64-manylinux_2_35", "aarch64-manylinux_2_35")
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


def run_uv(*arguments: str) -> None:
    """Run uv for macOS 14, the oldest one that MLX has wheels for."""
    command = [uv.find_uv_bin(), "--quiet", *arguments]
    environment = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}
    subprocess.run(command, check=True, env=environment, cwd=ROOT / "requirements" / "runtime")


def compile_lock() -> None:
    """Write the lock for all platforms and Pythons."""
    run_uv(
        *("pip", "compile", "pyproject.toml", "--universal", "--python-version", PYTHONS[0]),
        *("--upgrade", "--generate-hashes", "--no-header", "--no-annotate"),
        *("--no-emit-index-url", "--output-file", str(LOCK)),
    )


def check_wheels(platform: str, python: str) -> None:
    """Resolve the lock for one platform and Python; fails where a wheel is missing."""
    with tempfile.TemporaryDirectory() as folder:
        run_uv(
            *("pip", "install", "--dry-run", "--target", folder, "--python-version", python),
            *("--python-platform", platform, "--only-binary", ":all:", "--no-deps"),
            *("--require-hashes", "--requirement", str(LOCK)),
        )


if __name__ == "__main__":
    compile_lock()
    for platform in PLATFORMS:
        for python in PYTHONS:
            sys.stdout.write(f"checking {platform}, Python {python}\n")
            check_wheels(platform, python)
