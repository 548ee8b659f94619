import base64
import json
import shutil

import pytest
from _pytest.monkeypatch import MonkeyPatch
from fakes.hub import running_hub, write_model
from fakes.published_configs import CONFIGS
from fakes.weights import write_sparse_weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import (
    ConfigurationError,
    InsufficientMemoryError,
    ModelDownloadError,
    UnknownModelError,
    UnservableModelError,
)
from langchain_car_vllm.models.download import check_may_download
from langchain_car_vllm.models.hub import ask_hub_model
from langchain_car_vllm.models.hub_listing import HubListing
from langchain_car_vllm.server import ServerSpec
from langchain_car_vllm.server.known_model import fitting_context
from langchain_car_vllm.server.plan import asked_plan, plan_for

REPOSITORY = "mlx-community/Qwen3-4B-4bit"
WEIGHTS = 256_000


def check_model(source=REPOSITORY, revision=None, *, auto_pull=True):
    asked_plan(ServerSpec(source, source, revision=revision, auto_pull=auto_pull)).check()


def fetched(hub):
    """Return the files that were read from the hub."""
    return {
        path.rpartition("/")[2]
        for method, path, _ in hub.requests
        if method == "GET" and "/api/" not in path
    }


@pytest.fixture
def hub(tmp_path, monkeypatch, socket_enabled):
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.repositories[REPOSITORY] = write_model(tmp_path / "origin", weights=WEIGHTS)
        yield hub


def test_a_model_that_can_be_had_passes(hub, home):
    """A repository that may be read and fits is no error, and nothing is fetched."""
    check_model()
    check_model(revision="main")
    assert fetched(hub) == {"config.json"}
    assert not (home / ".cache").exists()


def test_a_model_that_writes_no_text_is_refused_before_it_is_fetched(hub):
    """For chat; its vectors can be had."""
    (hub.repositories[REPOSITORY] / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UnservableModelError, match="does not write text"):
        check_model()
    asked_plan(ServerSpec(REPOSITORY, REPOSITORY, kind="embeddings")).check()
    assert fetched(hub) == {"config.json"}


def test_the_hub_lists_files_with_sizes(hub):
    """The sizes that disk and memory are checked with are the Hub's."""
    found = ask_hub_model(REPOSITORY)
    assert found.weights == WEIGHTS < found.fetched
    assert found.config == json.loads((hub.repositories[REPOSITORY] / "config.json").read_text())


def test_the_token_is_sent(hub, home, monkeypatch):
    """`HF_TOKEN`, or the file that the Hub's own client leaves, opens a private repository."""
    hub.token = "secret"
    with pytest.raises(ModelDownloadError, match="no such repository"):
        check_model()
    monkeypatch.setenv("HF_TOKEN", "secret")
    check_model()
    monkeypatch.delenv("HF_TOKEN")
    (home / ".cache" / "huggingface").mkdir(parents=True)
    (home / ".cache" / "huggingface" / "token").write_text("secret\n")
    check_model()


def test_a_token_that_the_user_keeps_back_is_not_sent(hub, monkeypatch):
    """As the Hub's own client does it; a repository that wants one says why it is not had."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    check_model()
    assert not hub.authorizations - {""}
    hub.gated = True
    with pytest.raises(
        ModelDownloadError, match="not sent because of HF_HUB_DISABLE_IMPLICIT_TOKEN"
    ):
        check_model()


@pytest.mark.parametrize("token", ["hf_hush\nx", "hf_h\xfcush", "hf_ hush"])
@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:9"])
def test_a_token_that_no_header_can_hold_is_not_shown(hub, monkeypatch, token, proxy):
    """Nor is it taken for a network that is down."""
    monkeypatch.setenv("HF_TOKEN", token)
    if proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(ConfigurationError, match="the token for the Hub") as caught:
        check_model()
    assert "hush" not in str(caught.value)
    assert "HF_TOKEN" in caught.value.hint


def test_a_mirror_gets_the_user_that_its_address_names(hub, monkeypatch):
    """As from the Hub's own client, also where a token would be there; nobody is shown it."""
    hub.token = base64.b64encode(b"me:p w").decode()
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint.replace("http://", "http://me:p%20w@"))
    check_model()
    assert hub.authorizations == {"Basic"}
    hub.gated = True
    with pytest.raises(ModelDownloadError, match="gated") as caught:
        check_model()
    assert "p%20w" not in str(caught.value)


def test_the_token_goes_along_to_the_same_host(hub, monkeypatch):
    """The Hub answers a file from another path of its own, which wants the token too."""
    hub.token, hub.redirecting = "secret", True
    monkeypatch.setenv("HF_TOKEN", "secret")
    check_model()
    assert [request for request in hub.requests if "resolve-cache" in request[1]]


def test_a_token_that_is_none_is_told(hub, monkeypatch):
    """An expired token is not a missing repository."""
    hub.token = "secret"
    monkeypatch.setenv("HF_TOKEN", "expired")
    with pytest.raises(ModelDownloadError, match="refuses it: Invalid credentials") as caught:
        check_model()
    assert "HF_TOKEN" in caught.value.hint


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_repository_without_a_model_is_told(hub, missing):
    """One in another format exists, and is of no use."""
    (hub.repositories[REPOSITORY] / missing).unlink()
    with pytest.raises(ModelDownloadError, match="has no model"):
        check_model()


@pytest.mark.parametrize("page", ["<html>log in</html>", ["log in"], {"siblings": [1]}])
def test_somebody_who_answers_for_the_hub(hub, page):
    """The page of a café's network is no listing."""
    hub.portal = page
    with pytest.raises(ModelDownloadError, match="something other than the Hub") as caught:
        check_model()
    assert "log in" in caught.value.hint


FAULTS = {
    "gated": ({"gated": True}, "gated repository and no HF_TOKEN"),
    "gated-to-strangers": ({"gated": True, "token": "x"}, "gated repository and no HF_TOKEN"),
    "gone": ({"repositories": {}}, "no such repository"),
    "down": ({"failing_with": 503}, "not working at the moment"),
    "refused": ({"failing_with": 403}, "the Hub refuses it"),
    "too often": ({"failing_with": 429}, "too many requests from this network"),
    "too slow": ({"failing_with": 408}, "not working at the moment"),
    "proxy": ({"failing_with": 407}, "the proxy blocks the connection"),
    "law": ({"failing_with": 451}, "the Hub withholds it"),
    "large": ({"wrong_size": 10**15}, "needs 1000000000 MB more"),
}


@pytest.mark.parametrize(("faults", "said"), FAULTS.values(), ids=FAULTS)
def test_what_stands_in_the_way_is_told(hub, monkeypatch, faults, said):
    """Each obstacle is told before anything is fetched, with its cure."""
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "10000000")
    for name, value in faults.items():
        setattr(hub, name, value)
    with pytest.raises(ModelDownloadError, match=said) as caught:
        check_model()
    assert caught.value.hint
    assert "could not be" not in caught.value.message
    assert fetched(hub) <= {"config.json"}


def test_an_unknown_revision_is_told(hub):
    """A revision that does not exist is named."""
    with pytest.raises(ModelDownloadError, match="no revision `v9`"):
        check_model(revision="v9")


def test_no_network(monkeypatch, socket_enabled):
    """A Hub that cannot be reached is called that."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelDownloadError, match="cannot be reached") as caught:
        check_model()
    assert caught.value.message.startswith("asking the Hub about `")
    assert caught.value.hint == "connect to the network and try again"


@pytest.mark.parametrize(
    "endpoint",
    [
        *("hub.example.com", "ftp://hub.example.com", "https://", "http://[bad", "http://a..b"),
        *("http://host:99999", "http://host:0", "http://a b", "http://user:secret@[bad"),
        f"http://{'x' * 64}.example.com",
    ],
)
def test_a_strange_endpoint(monkeypatch, endpoint):
    """What is not an address is an error that says what to write, before anything is asked."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(ConfigurationError, match="HF_ENDPOINT") as refused:
        check_model()
    assert "secret" not in str(refused.value)
    with pytest.raises(ConfigurationError, match="HF_ENDPOINT"):
        check_may_download(REPOSITORY)


@pytest.mark.parametrize("written", [None, "no certificate"])
def test_certificates_that_cannot_be_read(tmp_path, monkeypatch, written):
    """`SSL_CERT_FILE` must lead to certificates."""
    file = tmp_path / "certificates.pem"
    if written:
        file.write_text(written)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with pytest.raises(ConfigurationError, match="SSL_CERT_FILE"):
        check_model()


def test_a_download_that_is_not_wanted(monkeypatch):
    """Without a copy here, `auto_pull=False` and `HF_HUB_OFFLINE` refuse without asking the Hub."""
    with pytest.raises(ModelDownloadError, match="auto_pull=False"):
        check_model(auto_pull=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelDownloadError, match="HF_HUB_OFFLINE"):
        check_model()


def test_a_model_that_can_never_fit(hub, monkeypatch):
    """Weights beyond the memory budget are refused with the numbers."""
    hub.wrong_size = 4 * 10**9
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "1.0")
    with pytest.raises(
        InsufficientMemoryError, match=r"weights take 4\.0 GB, .* 1\.0 GB"
    ) as caught:
        check_model()
    assert "car-vllm recommend" in caught.value.hint
    assert fetched(hub) == {"config.json"}


def test_a_local_model_is_looked_at(tmp_path, monkeypatch):
    """A directory is checked without any network."""
    folder = write_model(tmp_path / "model", weights=WEIGHTS)
    check_model(str(folder))
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "0.0001")
    with pytest.raises(InsufficientMemoryError):
        check_model(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnservableModelError, match="no safetensors weights"):
        check_model(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(UnknownModelError, match=r"no `config\.json`"):
        check_model(str(folder))


def test_a_copy_on_this_machine_needs_no_hub(home):
    """What LM Studio has downloaded is checked where it is."""
    folder = home / ".lmstudio" / "models" / REPOSITORY
    write_model(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    check_model(auto_pull=False)


def write_sparse(folder, config, weights):
    """Write a model of any size that takes no disk."""
    write_model(folder, weights=1)
    (folder / "config.json").write_text(json.dumps(config))
    write_sparse_weights(folder / "model.safetensors", weights)
    return folder


def test_construction_refuses_what_the_call_would_refuse(tmp_path, monkeypatch):
    """A model of 4 GB and a budget of 1 GB: `validate_model_on_init` says so at once."""
    folder = write_sparse(tmp_path / "large", CONFIGS["Qwen3-8B"], 4 * 10**9)
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "1.0")
    ChatVllmMlx(model=str(folder))
    with pytest.raises(InsufficientMemoryError, match=r"weights take 4\.0 GB, .* 1\.0 GB"):
        ChatVllmMlx(model=str(folder), validate_model_on_init=True)


def test_construction_counts_more_than_weights(tmp_path, monkeypatch):
    """Weights that just fit leave no room for a conversation."""
    folder = write_sparse(tmp_path / "tight", CONFIGS["Qwen3-8B"], 4 * 10**9)
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "4.5")
    with pytest.raises(InsufficientMemoryError):
        ChatVllmMlx(model=str(folder), validate_model_on_init=True)


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    st.integers(10**6, 60 * 10**9),
    st.sampled_from([{"model_type": "llama"}, *CONFIGS.values()]),
    st.integers(1, 80),
)
def test_all_who_ask_agree(tmp_path, monkeypatch, weights, config, gigabytes):
    """Construction, the command line and the supervisor give one verdict, from hub or files."""
    with MonkeyPatch.context() as patch:
        patch.setenv("CAR_VLLM_MLX_MEMORY_GB", str(gigabytes))
        folder = write_sparse(tmp_path / "any", config, weights)
        spec = ServerSpec(str(folder), str(folder))
        plan = plan_for(spec)
        listed = HubListing(config, weights, weights)
        ahead = plan_for(ServerSpec("org/any", "org/any"), listed)
        assert ahead.launch.memory == plan.launch.memory
        assert ahead.fits_memory is plan.fits_memory
        try:
            ChatVllmMlx(model=str(folder), validate_model_on_init=True)
        except InsufficientMemoryError:
            assert plan.fits_memory is False
        else:
            assert plan.fits_memory is True
        assert plan.fits_memory is not (plan.launch.memory.needed > gigabytes * 10**9)


def test_the_profile_says_what_fits_here(tmp_path, monkeypatch):
    """Agents that summarise rely on it: not what the model was made for, but what fits."""
    folder = write_sparse(tmp_path / "agent", CONFIGS["Qwen3-8B"], 4_600_000_000)
    spec = ServerSpec(str(folder), str(folder))
    found = []
    for gigabytes in ("8", "12", "48"):
        monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", gigabytes)
        profile = ChatVllmMlx(model=str(folder)).profile
        assert profile["max_input_tokens"] == fitting_context(spec)
        assert profile["max_input_tokens"] == plan_for(spec).launch.serving.max_input_tokens
        found.append(profile["max_input_tokens"])
    assert found == sorted(set(found))
    assert found[-1] == 40_960


@pytest.mark.parametrize("free", [1, 1000])
def test_the_catalog_is_enough_to_refuse(monkeypatch, free):
    """A 16-bit repository is refused by its true size, and the hint names its 4-bit sibling.

    Whoever would have to free the disk too is told first what that cannot mend.
    """
    disk = shutil.disk_usage("/")._replace(free=free * 10**9)
    monkeypatch.setattr("shutil.disk_usage", lambda _: disk)
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "20")
    large = plan_for(ServerSpec("google/gemma-4-26B-A4B-it", "gemma-4-26b-a4b-it"))
    with pytest.raises(InsufficientMemoryError, match=r"weights take 51\.6 GB") as caught:
        large.check()
    assert "mlx-community/gemma-4-26b-a4b-it-4bit" in caught.value.hint


@pytest.mark.parametrize(
    ("config", "times"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, 2),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, 2),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "format": "float-quantized",
                }
            },
            2,
        ),
        ({"quantization_config": {"quant_method": "fp8"}, "model_type": "deepseek_v4"}, 1),
        ({"quantization_config": {"quant_method": "mxfp4"}}, 1),
        ({"quantization_config": {"bits": 4}, "quantization": {"bits": 4}}, 1),
        ({"quantization_config": "fp8"}, 1),
    ],
)
@pytest.mark.parametrize("kind", ["chat", "embeddings"])
def test_weights_that_are_larger_once_they_are_loaded(tmp_path, config, times, kind):
    """Floats of 8 bits become 16, in memory alone."""
    folder = write_model(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral3", **config}))
    files = (folder / "model.safetensors").stat().st_size
    here = plan_for(ServerSpec(str(folder), "model", kind=kind))
    assert here.weights == files
    assert here.launch.memory.weights == files * times
    listed = HubListing({"model_type": "mistral3", **config}, files, files)
    there = plan_for(ServerSpec("org/model", "model", kind=kind), listed)
    assert there.launch.memory.weights == files * times
