"""`list` and `show`: the models on this machine, and what is known of one."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faults.support import Fake
from unit.cli.conftest import Cli
from unit.cli.model_folders import CATALOG, download, fill

from langchain_car_vllm.endpoint import Serving


def test_an_empty_machine_has_no_models(cli_here: Cli):
    """No data, and a word about the catalog."""
    done = cli_here("list")
    assert (done.returncode, done.stdout) == (0, "")
    assert "--catalog" in done.stderr
    assert json.loads(cli_here("list", "--json").stdout) == []


def test_models_of_the_hub_cache_and_lm_studio_are_listed(cli_here: Cli, cache: Path, home: Path):
    """Complete ones with their directory, interrupted ones as such, other things not at all."""
    tiny = download(cache, "org/tiny")
    known = download(cache, "mlx-community/Qwen3.6-35B-A3B-4bit")
    studio = home / ".lmstudio" / "models" / "lab" / "studio"
    fill(studio)
    blobs = cache / "models--org--half" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc.incomplete").write_bytes(bytes(500_000))
    (cache / "models--org--tokenizer-only" / "blobs").mkdir(parents=True)
    found = {entry["model"]: entry for entry in json.loads(cli_here("list", "--json").stdout)}
    assert {name: entry["directory"] for name, entry in found.items()} == {
        "org/tiny": str(tiny),
        CATALOG: str(known),
        "lab/studio": str(studio),
        "org/half": None,
    }
    assert found["org/tiny"]["bytes"] == 2_000_000
    assert found["org/tiny"]["context_window"] == 4096
    assert not found["org/half"]["complete"]
    table = cli_here("list").stdout
    assert "2.0 MB" in table
    assert [line for line in table.splitlines() if line.endswith("incomplete")]


def test_the_catalog_is_listed(cli_here: Cli):
    """All of it, here or not."""
    done = cli_here("list", "--catalog")
    assert CATALOG in done.stdout
    assert "20.4 GB" in done.stdout


def test_show_knows_a_model_before_its_download(cli_here: Cli):
    """The catalog and the name tell what they can, and it is said that it is only they."""
    done = cli_here("show", CATALOG, CAR_VLLM_MLX_MEMORY_GB="10")
    assert done.returncode == 0
    assert "not on this machine" in done.stderr
    known = json.loads(cli_here("show", CATALOG, "--json", CAR_VLLM_MLX_MEMORY_GB="10").stdout)
    assert known["tool_call_parser"] == "qwen"
    assert known["context_window"] == 262144
    assert known["weights_bytes"] == 20_400_000_000
    assert known["fits_memory"] is False
    unknown = json.loads(cli_here("show", "org/unheard-of", "--json").stdout)
    assert unknown["memory_bytes"] is None
    assert unknown["fits_memory"] is None


def test_show_reads_a_local_model(cli_here: Cli, fake: Fake):
    """A model that is here is described by its own files."""
    known = json.loads(cli_here("show", str(fake.model), "--json").stdout)
    assert known["directory"] == str(fake.model)
    assert known["context_window"] == 2048
    assert known["fits_memory"] is True
    assert "not on this machine" not in cli_here("show", str(fake.model)).stderr


def test_show_tells_every_fact_that_clients_are_told(cli_here: Cli, fake: Fake):
    """Whatever is known of a server shows before it runs, under the names of the state file."""
    known = json.loads(cli_here("show", str(fake.model), "--json").stdout)
    assert Serving().to_dict().keys() <= known.keys()
    assert known["engine"] == "batched"
    assert known["media"] == []


@pytest.mark.parametrize("model", [CATALOG, "org/unheard-of", "HERE", "ENCODER"])
def test_show_tells_people_in_words(cli_here: Cli, fake: Fake, cache: Path, model: str):
    """No names of fields, and nothing that is empty; what is not known is said to be."""
    config = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 512}
    (download(cache, "org/encoder") / "config.json").write_text(json.dumps(config))
    name = {"HERE": str(fake.model), "ENCODER": "org/encoder"}.get(model, model)
    done = cli_here("show", name)
    rows = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in done.stdout.splitlines())
    assert not [title for title in rows if "_" in title]
    assert not [text for text in rows.values() if text in ("", "-", "None")]
    assert rows["model"] == name
    assert {"memory", "context", "engine"} <= rows.keys()
    if model == CATALOG:
        assert rows["tool calls"] == "read in the `qwen` format"
    if model == "org/unheard-of":
        unknown = "unknown until it is downloaded"
        assert rows["tool calls"] == rows["thinking"] == rows["context"] == unknown
    if model == "HERE":
        assert rows["thinking"] == "the model does not think"
    assert ("tool calls" in rows) is (model != "ENCODER")


def test_a_model_that_only_reads_is_listed_and_refused_a_conversation(cli_here: Cli, cache: Path):
    """It embeds or reranks; `plan` is about conversations."""
    folder = download(cache, "org/encoder")
    config = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    (entry,) = json.loads(cli_here("list", "--json").stdout)
    assert (entry["problem"], entry["directory"]) == (None, str(folder))
    assert cli_here("show", "org/encoder").returncode == 0
    refused = cli_here("plan", "org/encoder")
    assert refused.returncode == 1
    assert "`org/encoder` does not write text: it is a `BertModel`" in refused.stderr


def test_an_odd_repository_does_not_hide_the_others(cli_here: Cli, cache: Path):
    """It is listed with what is wrong with it."""
    download(cache, "org/fine")
    for name, config in (("nested", "[" * 100_000), ("code", '{"model_file": "x.py"}')):
        (download(cache, f"org/{name}") / "config.json").write_text(config)
    (download(cache, "org/torn") / "model.safetensors").write_bytes(bytes(100))
    done = cli_here("list", "--json")
    assert done.returncode == 0, done.stderr
    listed = {entry["model"]: entry["problem"] for entry in json.loads(done.stdout)}
    assert listed["org/fine"] is None
    assert "is nested too deeply" in listed["org/nested"]
    assert "its own code" in listed["org/code"]
    assert "not in the safetensors format" in listed["org/torn"]
    assert "its own code" in cli_here("list").stdout


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
    folder = (cache / closed).resolve()  # nothing leads through it afterwards
    folder.chmod(0)
    try:
        done = subprocess.run(
            [*before, sys.executable, "-m", "langchain_car_vllm", *form],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        folder.chmod(0o700)
    assert done.returncode == 0, done.stderr
    if form[0] == "list":
        assert "some/other" in done.stdout
        assert closed.startswith("models") != ("may not be read" in done.stderr)
