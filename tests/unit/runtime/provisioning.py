"""What the tests of provisioning share."""

import os
import subprocess

from langchain_car_vllm.runtime.host import Host

ENSURE = "from langchain_car_vllm.runtime import ensure_runtime; print(ensure_runtime().server)"


def missing_uv():
    raise FileNotFoundError


def make_foreign(managed, fake_uv, *, version):
    """Make a managed environment as CAR does: no mark, packages of its own."""
    environment = os.environ | {"FAKE_UV_LOG": str(managed.parents[2] / "car-uv.log")}
    managed.parent.mkdir(parents=True)
    command = [fake_uv.binary, "venv", "--python", "python3", managed]
    subprocess.run(command, check=True, env=environment)
    site = next(managed.glob("lib/python*/site-packages"))
    (site / "car_speech").mkdir()
    (site / "car_speech" / "__init__.py").write_text("")
    if version:
        command = [fake_uv.binary, "pip", "install", "--python", managed / "bin" / "python"]
        subprocess.run([*command, f"vllm-mlx=={version}"], check=True, env=environment)
    return site


MAC = Host("darwin", "arm64", (14, 0))
