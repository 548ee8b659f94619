"""`list`, `show`, `plan` and `pull`: models before they run."""

import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from fakes.hub import running_hub, write_model
from fakes.published_configs import CONFIGS
from fakes.weights import weights_of, write_sparse_weights
from faults.support import FAST, PATIENCE, Fake, eventually
from unit.cli.conftest import Cli, command

from langchain_car_vllm.endpoint import Serving
from langchain_car_vllm.server import lease

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CATALOG = "vllm-mlx/qwen3.6-35b-a3b:4bit"


@pytest.fixture
def cache(home: Path) -> Path:
    return home / ".cache" / "huggingface" / "hub"


def fill(snapshot: Path) -> None:
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(
        '{"model_type": "llama", "max_position_embeddings": 4096}'
    )
    (snapshot / "tokenizer.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(weights_of(2_000_000))


def download(cache: Path, repository: str) -> Path:
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    fill(folder / "snapshots" / COMMIT)
    return folder / "snapshots" / COMMIT


def test_an_empty_machine_has_no_models(cli: Cli):
    """No data, and a word about the catalog."""
    done = cli("list")
    assert (done.returncode, done.stdout) == (0, "")
    assert "--catalog" in done.stderr
    assert json.loads(cli("list", "--json").stdout) == []


def test_models_of_the_hub_cache_and_lm_studio_are_listed(cli: Cli, cache: Path, home: Path):
    """Complete ones with their directory, interrupted ones as such, other things not at all."""
    tiny = download(cache, "org/tiny")
    known = download(cache, "mlx-community/Qwen3.6-35B-A3B-4bit")
    studio = home / ".lmstudio" / "models" / "lab" / "studio"
    fill(studio)
    blobs = cache / "models--org--half" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc.incomplete").write_bytes(bytes(500_000))
    (cache / "models--org--tokenizer-only" / "blobs").mkdir(parents=True)
    found = {entry["model"]: entry for entry in json.loads(cli("list", "--json").stdout)}
    assert {name: entry["directory"] for name, entry in found.items()} == {
        "org/tiny": str(tiny),
        CATALOG: str(known),
        "lab/studio": str(studio),
        "org/half": None,
    }
    assert found["org/tiny"]["bytes"] == 2_000_000
    assert found["org/tiny"]["context_window"] == 4096
    assert not found["org/half"]["complete"]
    table = cli("list").stdout
    assert "2.0 MB" in table
    assert [line for line in table.splitlines() if line.endswith("incomplete")]


def test_the_catalog_is_listed(cli: Cli):
    """All of it, here or not."""
    done = cli("list", "--catalog")
    assert CATALOG in done.stdout
    assert "20.4 GB" in done.stdout


def test_show_knows_a_model_before_its_download(cli: Cli):
    """The catalog and the name tell what they can, and it is said that it is only they."""
    done = cli("show", CATALOG, CAR_VLLM_MLX_MEMORY_GB="10")
    assert done.returncode == 0
    assert "not on this machine" in done.stderr
    known = json.loads(cli("show", CATALOG, "--json", CAR_VLLM_MLX_MEMORY_GB="10").stdout)
    assert known["tool_call_parser"] == "qwen"
    assert known["context_window"] == 262144
    assert known["weights_bytes"] == 20_400_000_000
    assert known["fits_memory"] is False
    unknown = json.loads(cli("show", "org/unheard-of", "--json").stdout)
    assert unknown["memory_bytes"] is None
    assert unknown["fits_memory"] is None


def test_show_reads_a_local_model(cli: Cli, fake: Fake):
    """A model that is here is described by its own files."""
    known = json.loads(cli("show", str(fake.model), "--json").stdout)
    assert known["directory"] == str(fake.model)
    assert known["context_window"] == 2048
    assert known["fits_memory"] is True
    assert "not on this machine" not in cli("show", str(fake.model)).stderr


def test_show_tells_every_fact_that_clients_are_told(cli: Cli, fake: Fake):
    """Whatever is known of a server shows before it runs, under the names of the state file."""
    known = json.loads(cli("show", str(fake.model), "--json").stdout)
    assert Serving().to_dict().keys() <= known.keys()
    assert known["engine"] == "batched"
    assert known["media"] == []


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


def test_a_plan_tells_the_context_and_the_company_that_fit(cli: Cli, tmp_path: Path):
    """What was asked for fits, or the largest context and company that do are named."""
    model = tmp_path / "model"
    fill(model)
    (model / "config.json").write_text(json.dumps(CONFIGS["Qwen3-8B"]))
    write_sparse_weights(model / "model.safetensors", 4_600_000_000)
    arguments = ("plan", str(model), "--context", "16k", "--agents")
    few = json.loads(cli(*arguments, "1", "--json", CAR_VLLM_MLX_MEMORY_GB="11.5").stdout)
    assert few["fits"]["company"] is True
    assert few["context_window"] == 40_960
    assert few["max_input_tokens"] < 40_960
    done = cli(*arguments, "8", "--json", CAR_VLLM_MLX_MEMORY_GB="11.5")
    assert done.returncode == 1
    many = json.loads(done.stdout)
    assert many["fits"]["company"] is False
    told = many["company"]
    assert 8 * told["largest_context"] <= many["kv_room_tokens"] < 8 * 16_384
    assert told["most_agents"] == many["kv_room_tokens"] // 16_384
    told_text = cli(*arguments, "8", CAR_VLLM_MLX_MEMORY_GB="11.5").stdout
    assert f"8 x 16,384 tokens do not fit; 8 x {told['largest_context']:,} do" in told_text
    smaller = cli(*arguments, "1", CAR_VLLM_MLX_MEMORY_GB="9").stdout
    assert "a 4-bit quantisation of it would" in smaller


@pytest.mark.parametrize(
    "wrong",
    [
        ("--context", "0"),
        ("--context", "-5"),
        ("--context", "many"),
        ("--context", "64kb"),
        ("--context", "99999999999"),
        ("--agents", "0"),
        ("--agents", "-1"),
    ],
)
def test_a_company_that_makes_no_sense_is_refused(cli: Cli, wrong: tuple[str, str]):
    """Nonsense is told as what it is, with what to write instead."""
    done = cli("plan", "org/any", *wrong)
    assert done.returncode == 1
    assert wrong[0] in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plan_that_cannot_work_is_exit_code_1(cli: Cli, fake: Fake):
    """Too little memory is told with the numbers, a Hub that may not be asked by its reason."""
    done = cli("plan", CATALOG, CAR_VLLM_MLX_MEMORY_GB="10", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "does not fit" in done.stdout
    assert "of 10.0 GB" in done.stdout
    assert "HF_HUB_OFFLINE forbids the download" in done.stdout
    assert done.stderr.count("hint: ") == 2
    assert "raise CAR_VLLM_MLX_MEMORY_GB" in done.stderr
    assert "command" not in done.stdout


def install(fake: Fake, script: str) -> None:
    """Put a shell script in the place of `vllm-mlx`."""
    fake.binary.write_text(f"#!/bin/sh\n{script}\n")
    fake.binary.chmod(fake.binary.stat().st_mode | stat.S_IXUSR)


def test_pull_of_what_is_there(cli: Cli, cache: Path):
    """Nothing is installed or fetched, the directory is printed."""
    snapshot = download(cache, "org/tiny")
    done = cli("pull", "org/tiny", CAR_VLLM_MLX_AUTO_INSTALL="0")
    assert (done.returncode, done.stdout) == (0, f"{snapshot}\n")


def test_pull_installs_nothing_where_that_is_forbidden(
    cli: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whoever installs by themselves is told the command."""
    monkeypatch.delenv("CAR_VLLM_MLX_BIN", raising=False)
    done = cli(
        "pull", "org/tiny", CAR_VLLM_MLX_AUTO_INSTALL="0", HF_ENDPOINT="http://127.0.0.1:9", PATH=""
    )
    assert done.returncode == 1
    assert "CAR_VLLM_MLX_AUTO_INSTALL=0" in done.stderr
    assert not (Path(os.environ["HOME"]) / ".car/visual-runtime").exists()


def test_pull_downloads(cli: Cli, cache: Path, fake: Fake, tmp_path: Path):
    """The runtime's own download is run, and the directory that it filled is printed."""
    source = download(tmp_path / "elsewhere", "org/tiny").parents[1]
    install(fake, f'echo "$@"; mkdir -p {cache}; cp -R {source} {cache}/')
    done = cli("pull", "org/tiny")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{cache}/models--org--tiny/snapshots/{COMMIT}\n"
    assert "download" in done.stderr
    (log,) = Path(os.environ["HOME"]).glob(".car/run/pull/*/download.log")
    assert log.read_text() == "download org/tiny\n"


def test_pull_fetches_what_is_newer(cli: Cli, cache: Path, fake: Fake):
    """With `--update` the Hub is asked although a copy is here, and it is said what came of it."""
    snapshot = download(cache, "org/tiny")
    install(fake, 'echo "$@"')
    done = cli("pull", "org/tiny", "--update")
    assert (done.returncode, done.stdout) == (0, f"{snapshot}\n"), done.stderr
    assert "`org/tiny` is up to date" in done.stderr
    newer = snapshot.with_name("f" * 40)
    ref = snapshot.parents[1] / "refs" / "main"
    install(fake, f"cp -R {snapshot} {newer}; printf {'f' * 40} > {ref}")
    done = cli("pull", "org/tiny", "--update")
    assert (done.returncode, done.stdout) == (0, f"{newer}\n"), done.stderr
    assert "is newer now" in done.stderr
    done = cli("pull", "org/tiny", "--update", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "`org/tiny` cannot be updated: HF_HUB_OFFLINE" in done.stderr


def test_pull_updates_no_directory(cli: Cli, fake: Fake):
    """A folder has no newer version that could be fetched."""
    done = cli("pull", str(fake.model), "--update")
    assert done.returncode == 1
    assert "is a directory" in done.stderr


def test_pull_explains_a_failure(cli: Cli, fake: Fake):
    """What the Hub refused is told with what to do about it."""
    install(fake, 'echo "Cannot access gated repo for url"; exit 1')
    done = cli("pull", "org/secret")
    assert (done.returncode, done.stdout) == (1, "")
    assert "it is a gated repository and no HF_TOKEN is set" in done.stderr
    assert "hint: accept the licence" in done.stderr


def test_several_are_pulled_and_all_are_ids(cli: Cli, cache: Path, fake: Fake, tmp_path: Path):
    """What is no id ends it before the first download; else each directory is printed."""
    sources = [download(tmp_path / "elsewhere", name).parents[1] for name in ("o/one", "o/two")]
    install(fake, f"mkdir -p {cache}; cp -R {sources[0]} {sources[1]} {cache}/")
    assert cli("pull", "o/one", "nothing").returncode == 1
    assert not (cache / "models--o--one").exists()
    done = cli("pull", "o/one", "o/two")
    assert done.returncode == 0, done.stderr
    assert [line.split("models--")[1][:6] for line in done.stdout.splitlines()] == [
        "o--one",
        "o--two",
    ]


def test_pull_of_something_else(cli: Cli, fake: Fake):
    """A repository without a model is not a success."""
    install(fake, "exit 0")
    done = cli("pull", "org/dataset")
    assert done.returncode == 1
    assert "holds no model" in done.stderr


def test_pull_that_stands_still_is_given_up(cli: Cli, fake: Fake):
    """No byte, no line and no CPU time for as long as the limit says: an error."""
    install(fake, "exec sleep 600")
    done = cli("pull", "org/slow", CAR_VLLM_MLX_DOWNLOAD_STALL="0.5")
    assert done.returncode == 1
    assert "made no progress for 0.5 s" in done.stderr


def test_a_relative_folder_of_the_hub_is_the_users(
    cli: Cli, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The child runs elsewhere and still fills the folder that the user meant."""
    source = download(tmp_path / "elsewhere", "org/tiny").parents[1]
    install(fake, f'mkdir -p "$HF_HOME/hub"; cp -R {source} "$HF_HOME/hub/"')
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    done = cli("pull", "org/tiny", HF_HOME="./hf")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "work" / done.stdout.strip() / "config.json").is_file()


def test_a_second_pull_waits_for_the_first(cli: Cli, cache: Path, fake: Fake, tmp_path: Path):
    """It downloads nothing itself and prints the same directory."""
    source = download(tmp_path / "elsewhere", "org/tiny").parents[1]
    started, gate, count = tmp_path / "started", tmp_path / "gate", tmp_path / "count"
    install(
        fake,
        f"echo x >> {count}; touch {started}; while [ ! -e {gate} ]; do sleep 0.05; done; "
        f"mkdir -p {cache}; cp -R {source} {cache}/",
    )
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command("pull", "org/tiny"), **output)
    try:
        eventually(started.exists, "the download")
        second = subprocess.Popen(command("pull", "org/tiny"), **output)
        try:
            assert second.stderr is not None
            assert any("downloading org/tiny" in line for line in second.stderr)
            gate.touch()
            done = [pulling.communicate(timeout=PATIENCE)[0] for pulling in (first, second)]
        finally:
            second.kill()
    finally:
        first.kill()
        first.wait()
    assert done == [f"{cache}/models--org--tiny/snapshots/{COMMIT}\n"] * 2
    assert count.read_text() == "x\n"


def test_ctrl_c_ends_the_download(fake: Fake, tmp_path: Path):
    """The child ends with the command."""
    started = tmp_path / "pid"
    install(fake, f"echo $$ > {started}.new; mv {started}.new {started}; exec sleep 600")
    pulling = subprocess.Popen(command("pull", "org/slow"))
    try:
        eventually(started.exists, "the download")
        os.kill(pulling.pid, signal.SIGINT)
        assert pulling.wait(PATIENCE) == 130
    finally:
        pulling.kill()
        pulling.wait()
    assert not psutil.pid_exists(int(started.read_text()))


def test_an_odd_repository_does_not_hide_the_others(cli: Cli, cache: Path):
    """It is listed with what is wrong with it."""
    download(cache, "org/fine")
    for name, config in (("nested", "[" * 100_000), ("code", '{"model_file": "x.py"}')):
        (download(cache, f"org/{name}") / "config.json").write_text(config)
    (download(cache, "org/torn") / "model.safetensors").write_bytes(bytes(100))
    done = cli("list", "--json")
    assert done.returncode == 0, done.stderr
    listed = {entry["model"]: entry["problem"] for entry in json.loads(done.stdout)}
    assert listed["org/fine"] is None
    assert "nests too deeply" in listed["org/nested"]
    assert "code of its own" in listed["org/code"]
    assert "not in the safetensors format" in listed["org/torn"]
    assert "code of its own" in cli("list").stdout


WITHOUT_ITS_RIGHTS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


@pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which(WITHOUT_ITS_RIGHTS[0]) is None,
    reason="root may read everything",
)
@pytest.mark.parametrize("closed", ["../..", ".", "models--org--tiny"])
@pytest.mark.parametrize("form", [("list",), ("list", "--json"), ("uninstall", "--dry-run")])
def test_what_may_not_be_read_keeps_no_listing_from_its_end(
    cache: Path, home: Path, closed: str, form: tuple[str, ...]
):
    """As after a download with sudo; what can be read is listed, the rest is told."""
    fill(cache / "models--org--tiny" / "snapshots" / "abc")
    (cache / "models--org--tiny" / "blobs").mkdir()
    fill(home / ".lmstudio" / "models" / "some" / "other")
    before = WITHOUT_ITS_RIGHTS if os.geteuid() == 0 else ()
    (cache / closed).chmod(0)
    try:
        done = subprocess.run(
            [*before, sys.executable, "-m", "langchain_car_vllm", *form],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        (cache / closed).chmod(0o700)
    assert done.returncode == 0, done.stderr
    if form[0] == "list":
        assert "some/other" in done.stdout
        assert closed.startswith("models") != ("may not be read" in done.stderr)
