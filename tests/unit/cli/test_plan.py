"""`plan`: whether and how a model would run, before it does."""

import json
import shlex
from pathlib import Path

import psutil
from fakes.hub import running_hub, write_model
from fakes.published_configs import CONFIGS
from fakes.weights import write_sparse_weights
from faults.support import FAST, Fake
from unit.cli.conftest import Cli
from unit.cli.model_folders import CATALOG, fill

from langchain_car_vllm.server import lease


def test_the_plan_is_what_happens(cli: Cli, fake: Fake):
    """The command line, the engine and the memory are those of the real start."""
    extra = ("--max-tokens", "77")
    done = cli("plan", str(fake.model), "--server-arg=--max-tokens", "--server-arg=77", "--json")
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    assert fake.starts() == []
    with lease(fake.spec(server_args=extra), policy=FAST):
        state = fake.state(server_args=extra)
        assert state.server is not None
        real = psutil.Process(state.server.pid).cmdline()
    words = shlex.split(planned["command"])
    words[words.index("PORT")] = str(state.port)
    assert real[-len(words) :] == words
    assert planned["engine"] == state.serving.engine
    assert planned["memory_bytes"] == state.reservation
    assert planned["memory_taken_bytes"] == 0
    beside = json.loads(cli("plan", str(fake.model), "--json").stdout)
    assert beside["memory_taken_bytes"] == state.reservation
    assert planned["runtime_version"] == state.serving.version == "0.6.0"
    assert planned["fits"] == {"host": True, "hub": True, "disk": True, "memory": True}


def test_a_plan_asks_the_hub(cli: Cli, fake: Fake, tmp_path: Path, socket_enabled: None):
    """A model that is not here is judged by the Hub's own sizes, and nothing is fetched."""
    with running_hub() as hub:
        hub.repositories["org/tiny"] = write_model(tmp_path / "origin", weights=256_000)
        done = cli("plan", "org/tiny", "--json", HF_ENDPOINT=hub.endpoint)
        assert done.returncode == 0, done.stdout
        planned = json.loads(done.stdout)
        assert planned["weights_bytes"] == 256_000
        assert planned["fits"] == {"host": True, "hub": True, "disk": True, "memory": True}
        assert hub.bytes_sent == 0
        missing = cli("plan", "org/none", HF_ENDPOINT=hub.endpoint)
    assert missing.returncode == 1
    assert "the Hub has no such repository" in missing.stdout


def test_a_plan_tells_the_context_and_the_company_that_fit(cli_here: Cli, tmp_path: Path):
    """What was asked for fits, or the largest context and company that do are named."""
    model = tmp_path / "model"
    fill(model)
    (model / "config.json").write_text(json.dumps(CONFIGS["Qwen3-8B"]))
    write_sparse_weights(model / "model.safetensors", 4_600_000_000)
    arguments = ("plan", str(model), "--context", "16k", "--agents")
    few = json.loads(cli_here(*arguments, "1", "--json", CAR_VLLM_MLX_MEMORY_GB="11.5").stdout)
    assert few["fits"]["company"] is True
    assert few["context_window"] == 40_960
    assert few["max_input_tokens"] < 40_960
    done = cli_here(*arguments, "8", "--json", CAR_VLLM_MLX_MEMORY_GB="11.5")
    assert done.returncode == 1
    many = json.loads(done.stdout)
    assert many["fits"]["company"] is False
    told = many["company"]
    assert 8 * told["largest_context"] <= many["kv_room_tokens"] < 8 * 16_384
    assert told["most_agents"] == many["kv_room_tokens"] // 16_384
    told_text = cli_here(*arguments, "8", CAR_VLLM_MLX_MEMORY_GB="11.5").stdout
    assert f"8 x 16,384 tokens do not fit; 8 x {told['largest_context']:,} do" in told_text
    smaller = cli_here(*arguments, "1", CAR_VLLM_MLX_MEMORY_GB="9").stdout
    assert "a 4-bit quantisation of it would" in smaller


def test_what_a_config_does_not_tell_is_not_said_to_come_with_a_download(
    cli_here: Cli, tmp_path: Path
):
    """The model is here, and its layers are not described."""
    model = tmp_path / "model"
    fill(model)
    done = cli_here("plan", str(model), "--agents", "4")
    assert "4 x 4,096 tokens: unknown, since its config.json does not say" in done.stdout
    assert "download" not in done.stdout


def test_a_plan_is_json_whatever_it_says(cli_here: Cli, tmp_path: Path):
    """A program reads a verdict and a reason also where there is nothing to make a plan of."""
    (tmp_path / "empty").mkdir()
    for name, config in (("torn", "{bad"), ("code", '{"model_file": "x.py"}'), ("odd", "[]")):
        fill(tmp_path / name)
        (tmp_path / name / "config.json").write_text(config)
    names = [*(str(tmp_path / n) for n in ("empty", "torn", "code", "odd", "gone")), "nonsense"]
    for name in names:
        done = cli_here("plan", name, "--json")
        assert done.returncode == 1
        told = json.loads(done.stdout)
        assert told["model"] == name
        assert (told["command"], told["fits"]) == (None, {"model": False})
        assert told["messages"]["model"] in done.stderr
        assert told["hints"]
        assert done.stderr == cli_here("plan", name).stderr


def test_each_verdict_comes_with_its_reason(cli_here: Cli):
    """As in the table, which has a line for each."""
    arguments = ("plan", CATALOG, "--agents", "2")
    environment = {"CAR_VLLM_MLX_MEMORY_GB": "10", "HF_HUB_OFFLINE": "1"}
    told = json.loads(cli_here(*arguments, "--json", **environment).stdout)
    table = cli_here(*arguments, **environment).stdout
    assert told["command"] is None
    assert told["messages"].keys() == told["fits"].keys()
    for name, message in told["messages"].items():
        same = message.partition("; ")[0]  # what is free on the disk changes meanwhile
        assert f"\n{name.ljust(10)}  {same}" in f"\n{table}"
    assert "HF_HUB_OFFLINE forbids" in told["messages"]["hub"]
    assert "does not fit" in told["messages"]["memory"]


def test_a_plan_that_cannot_work_is_exit_code_1(cli_here: Cli, fake: Fake):
    """Too little memory is told with the numbers, a Hub that may not be asked by its reason."""
    done = cli_here("plan", CATALOG, CAR_VLLM_MLX_MEMORY_GB="10", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "does not fit" in done.stdout
    assert "of 10.0 GB" in done.stdout
    assert "HF_HUB_OFFLINE forbids the download" in done.stdout
    assert "hint: unset HF_HUB_OFFLINE" in done.stderr
    assert "raise CAR_VLLM_MLX_MEMORY_GB" in done.stderr
    assert "command" not in done.stdout
