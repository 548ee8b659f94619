"""No file of a model is run or fetched as code unless the user trusts it by name."""

import json
import sys

import pytest
from fakes.hub import running_hub, write_model

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import CarVllmError, UnservableModelError, UntrustedCodeError
from langchain_car_vllm.models import downloader, find_snapshot, read_model_facts
from langchain_car_vllm.models.download import download_command
from langchain_car_vllm.models.download_diagnosis import diagnose_download
from langchain_car_vllm.models.downloader import VERDICT
from langchain_car_vllm.models.families import own_code_types
from langchain_car_vllm.models.remote_code import TRUST, find_code, is_trusted
from langchain_car_vllm.models.servable import check_servable
from langchain_car_vllm.server import ServerSpec
from langchain_car_vllm.server.plan import asked_plan

REPOSITORY = "org/evil"
MAPPED = {"AutoTokenizer": ["tokenization_evil.Evil", None]}
ASKING = {
    "model_file": ("config.json", {"model_type": "llama", "model_file": "modeling.py"}),
    "empty model_file": ("config.json", {"model_type": "llama", "model_file": ""}),
    "file elsewhere": ("config.json", {"model_type": "llama", "model_file": "/tmp/x.py"}),
    "config": ("config.json", {"model_type": "llama", "auto_map": {"AutoConfig": "c.Evil"}}),
    "other repository": (
        "config.json",
        {"model_type": "x", "auto_map": {"AutoConfig": "o/r--c.E"}},
    ),
    "nested": ("config.json", {"model_type": "x", "text_config": {"auto_map": {"A": "c.Evil"}}}),
    "in a list": ("config.json", {"model_type": "x", "parts": [{"auto_map": {"A": "c.Evil"}}]}),
    "media": (
        "config.json",
        {"model_type": "minimax_m2", "vision_config": {}, "auto_map": {"AutoConfig": "c.Evil"}},
    ),
    "tokenizer": ("tokenizer_config.json", {"auto_map": MAPPED}),
    "processor": ("processor_config.json", {"auto_map": {"AutoProcessor": "p.Evil"}}),
    "preprocessor": ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "p.Evil"}}),
    "video": ("video_preprocessor_config.json", {"auto_map": {"AutoVideoProcessor": "p.Evil"}}),
}
asking = pytest.mark.parametrize(("file", "content"), ASKING.values(), ids=ASKING)


@pytest.fixture
def hub(tmp_path, monkeypatch, socket_enabled):
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.repositories[REPOSITORY] = write_model(tmp_path / "origin")
        (hub.repositories[REPOSITORY] / "modeling.py").write_text("raise SystemExit")
        yield hub


@asking
def test_a_folder_that_asks_for_code_is_refused(whole_model, file, content):
    """Wherever a file of settings names code, nothing of the model is loaded."""
    folder = whole_model(**{file.replace(".", "__"): content})
    for check in (read_model_facts, check_servable):
        with pytest.raises(UntrustedCodeError, match=file) as caught:
            check(folder, "org/evil")
        assert "--trust-remote-code" in caught.value.hint
        check(folder, "org/evil", trust=True)


@asking
def test_construction_tells_when_it_is_asked_to(whole_model, file, content):
    """`validate_model_on_init` refuses such a folder; trusting it by name does not."""
    folder = whole_model(**{file.replace(".", "__"): content})
    with pytest.raises(UntrustedCodeError):
        ChatVllmMlx(model=str(folder), validate_model_on_init=True)
    trusting = ["--trust-remote-code"]
    ChatVllmMlx(model=str(folder), validate_model_on_init=True, server_args=trusting)


@asking
def test_the_hub_is_asked_before_anything_is_fetched(hub, file, content):
    """A repository that asks for code is refused by its settings, without a byte of weights."""
    (hub.repositories[REPOSITORY] / file).write_text(json.dumps(content))
    with pytest.raises(UntrustedCodeError, match=file):
        asked_plan(ServerSpec(REPOSITORY, REPOSITORY))
    assert hub.bytes_sent == 0
    asked_plan(ServerSpec(REPOSITORY, REPOSITORY, server_args=(TRUST,)))


def test_code_that_nothing_asks_for_does_no_harm(hub, whole_model):
    """A script beside the weights is neither loaded nor fetched."""
    folder = whole_model()
    (folder / "modeling.py").write_text("raise SystemExit")
    check_servable(folder, "org/x")
    asked_plan(ServerSpec(REPOSITORY, REPOSITORY))


@pytest.mark.parametrize("model_type", own_code_types())
def test_code_for_other_programs_does_no_harm(whole_model, model_type):
    """Where the server has an implementation of its own, that of the repository is not asked for.

    A tokenizer of the repository's own still is.
    """
    config = {"model_type": model_type, "auto_map": {"AutoModel": "modeling.Model"}}
    folder = whole_model(config__json=config)
    check_servable(folder, "org/x")
    assert read_model_facts(folder, "org/x").weights_bytes
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": MAPPED}))
    with pytest.raises(UntrustedCodeError, match="tokenizer_config"):
        check_servable(folder, "org/x")


@pytest.mark.parametrize(
    ("arguments", "trusted"),
    [
        ([], False),
        (["--trust-remote-code"], True),
        (["--trust"], False),
        (["--no-trust-remote-code"], False),
        (["x--trust-remote-code"], False),
    ],
)
def test_trust_is_said_by_name(arguments, trusted):
    """Nothing but the whole flag is taken for trust."""
    assert is_trusted(arguments) is trusted


def test_the_name_of_the_code_cannot_write_to_a_terminal(whole_model):
    """What a stranger wrote is shown without its control characters."""
    folder = whole_model(config__json={"model_type": "x", "model_file": "\x1b]52;c;\ud800.py" * 50})
    with pytest.raises(UntrustedCodeError) as caught:
        check_servable(folder, "org/x")
    assert str(caught.value).isascii()
    assert "\x1b" not in str(caught.value)
    assert len(caught.value.message) < 300


def test_a_download_that_met_code_says_so(tmp_path):
    """The child ends before the weights, and its verdict becomes the same error."""
    log = tmp_path / "log"
    log.write_text(f'{VERDICT}{{"kind": "code", "said": "`model_file` of `config.json`"}}\n')
    error = diagnose_download("org/evil", None, log)
    assert isinstance(error, UntrustedCodeError)
    assert "`model_file` of `config.json`" in error.message


def test_only_a_trusting_download_brings_code(tmp_path):
    """The child is told, and so is who looks for the copy afterwards."""
    binary = tmp_path / "vllm-mlx"
    binary.write_text(f"#!{sys.executable}\n")
    usual = download_command(tmp_path, binary, "org/x").environment
    trusting = download_command(tmp_path, binary, "org/x", trust=True).environment
    assert "CAR_VLLM_DOWNLOAD_TRUST" not in usual
    assert trusting["CAR_VLLM_DOWNLOAD_TRUST"] == "1"


def test_a_copy_without_its_code_is_whole_for_those_who_do_not_trust_it(home):
    """Who trusts it needs the code, so that it is fetched then."""
    folder = home / ".cache/huggingface/hub/models--org--evil"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = write_model(folder / "snapshots" / commit)
    sizes = {path.name: path.stat().st_size for path in snapshot.iterdir()} | {"modeling.py": 5}
    entries = {name: {"size": size, "blob_id": "0"} for name, size in sizes.items()}
    (folder / "trees").mkdir()
    (folder / "trees" / f"{commit}.json").write_text(json.dumps({"files": entries}))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    assert find_snapshot("org/evil") == snapshot
    assert find_snapshot("org/evil", trust=True) is None


MANY = [[] for _ in range(100_001)]
EVADING = {
    "after much else": (
        "config.json",
        {"model_type": "x", "part": {"auto_map": {"A": "c.Evil"}}, "many": MANY},
    ),
    "too deep": (
        "tokenizer_config.json",
        b'{"auto_map": {"A": "c.Evil"}, "x": %s}' % (b"[" * 9**5),
    ),
    "no number": (
        "processor_config.json",
        b'{"auto_map": {"A": "c.Evil"}, "x": 1%s}' % (b"0" * 5000),
    ),
    "too large": ("preprocessor_config.json", b'{"auto_map": {"A": "c.Evil"}}' + b" " * 64_000_000),
    "a disk without case": ("Tokenizer_Config.JSON", {"auto_map": MAPPED}),
    "a folded letter": ("Proce\u017f\u017for_config.json", {"auto_map": MAPPED}),
}


@pytest.mark.parametrize(("file", "content"), EVADING.values(), ids=EVADING)
def test_a_folder_that_hides_what_it_asks_for_is_refused(whole_model, file, content):
    """What this package cannot read to its end, the server may: nothing of it is loaded."""
    folder = whole_model()
    (folder / file).write_bytes(
        content if isinstance(content, bytes) else json.dumps(content).encode()
    )
    for check in (read_model_facts, check_servable):
        with pytest.raises(UnservableModelError, match=f"(?i){file}|code"):
            check(folder, "org/evil")


@pytest.mark.parametrize(
    ("file", "content"), [*ASKING.values(), *EVADING.values()], ids=[*ASKING, *EVADING]
)
def test_a_download_looks_as_closely(whole_model, capsys, file, content):
    """The program that fetches judges by itself: it runs without this package."""
    if file.endswith(".json"):  # no other is fetched
        folder = whole_model(
            tokenizer_config__json={}, generation_config__json=b"{", results__json=b"["
        )
        downloader._check_code(folder)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / file).write_bytes(data)
        with pytest.raises(SystemExit):
            downloader._check_code(folder)
        assert (
            f"`{file}`" in json.loads(capsys.readouterr().out.strip().removeprefix(VERDICT))["said"]
        )


def test_a_name_is_read_as_a_disk_without_case_reads_it():
    """`Config.json` is `config.json` where macOS keeps it, and `model_file` in it is code."""
    files = {"Config.JSON": {"model_type": "llama", "model_file": "modeling.py"}}
    assert "model_file" in find_code(files, files.get)


def test_what_the_hub_sends_of_settings_is_read_to_its_end_or_refused(hub):
    """Settings that cannot be read are no reason to fetch weights."""
    (hub.repositories[REPOSITORY] / "tokenizer_config.json").write_bytes(b"[" * 100_000)
    with pytest.raises(CarVllmError, match="tokenizer_config"):
        asked_plan(ServerSpec(REPOSITORY, REPOSITORY))
    assert hub.bytes_sent == 0


def test_harmless_files_that_cannot_be_read_refuse_nothing(whole_model):
    """Results, macOS's own files and what the server does without are left alone."""
    folder = whole_model()
    for name in ("results.json", "._tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes(b"\0\1{")
    (folder / "words.json").write_text(json.dumps({str(place): place for place in range(120_000)}))
    check_servable(folder, "org/x")
    assert read_model_facts(folder, "org/x")
