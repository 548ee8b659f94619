from pathlib import Path

import pytest

from langchain_car_vllm.server.child_environment import download_environment, server_environment

OURS = {
    "TMPDIR": "/own",
    "CAR_VLLM_LAUNCH_KERNELS": "/kernels",
    "VLLM_MLX_SIMPLE_ENGINE_LOCK_ADMISSION": "wait",
    "PYTHONUNBUFFERED": "1",
    "TQDM_POSITION": "-1",
}
SECRETS = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GITHUB_TOKEN", "ANTHROPIC_API_KEY"),
    *("OPENAI_API_KEY", "LANGSMITH_API_KEY", "CAR_VLLM_MLX_API_KEY", "DATABASE_URL", "PGPASSWORD"),
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_ENDPOINT", "HF_OIDC_TOKEN"),
    *("HF_APIKEY", "HF_AUTH", "HF_PASSWD", "HF_KEY", "VLLM_MLX_KEY", "MLX_COOKIE", "HF_JWT"),
    *("SSH_AUTH_SOCK", "KUBECONFIG", "NETRC", "VLLM_MLX_API_KEY", "COOKIE", "A", "car_secret"),
)
MISLEADING = (
    *("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"),
    *("VLLM_MLX_MCP_CONFIG", "DYLD_INSERT_LIBRARIES", "LANGCHAIN_TRACING_V2"),
    *("HTTPS_PROXY", "http_proxy", "ALL_PROXY", "no_proxy", "CAR_VLLM_LAUNCH_PIPE", "UV_INDEX"),
)
NEEDED = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "XDG_CACHE_HOME"),
    *("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_VERBOSITY"),
    *("MLX_BUFFER_CACHE_LIMIT", "METAL_DEVICE_WRAPPER_TYPE", "VLLM_MLX_SYSTEM_KV_SLOTS"),
    *(
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "DYLD_FALLBACK_LIBRARY_PATH",
        "OMP_NUM_THREADS",
    ),
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "TOKENIZERS_PARALLELISM"),
    "VLLM_MLX_NO_FINAL_CONTENT_TOKEN_LIMIT",
)
FOR_DOWNLOADS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_ENDPOINT")
SESSION = ("TMPDIR", "TMP", "TEMP")


def environment(inherited, added=None, *, offline=False):
    folders = {"temporary": Path("/own"), "kernels": Path("/kernels")}
    return server_environment(inherited, added or {}, **folders, offline=offline)


@pytest.mark.parametrize("name", [*SECRETS, *MISLEADING, *SESSION])
def test_what_a_server_does_not_need_stays_behind(name):
    """A model's files are read by a process that holds no key of the user's."""
    assert environment({name: "x"}) == OURS


@pytest.mark.parametrize("name", NEEDED)
def test_what_a_server_needs_reaches_it(name):
    """Folders, language, certificates and the settings of MLX are the user's."""
    assert environment({name: "x"}) == {name: "x", **OURS}


@pytest.mark.parametrize("name", [*SECRETS, *MISLEADING, *SESSION, *NEEDED])
def test_server_env_has_the_last_word(name):
    """What the user names by hand reaches the server, whatever it is."""
    assert environment({name: "x"}, {name: "mine"}, offline=True)[name] == "mine"


def test_a_server_that_has_its_model_does_not_ask_the_hub():
    """The variable works where the server's own flag does not."""
    assert environment({}, offline=True) == OURS | {"HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize(
    "name", [*FOR_DOWNLOADS, *SESSION, "HTTPS_PROXY", "no_proxy", "HF_HOME", "PATH"]
)
def test_a_download_gets_the_token_and_the_proxies(name):
    """It alone talks to the Hub."""
    assert download_environment({name: "x"})[name] == "x"


@pytest.mark.parametrize(
    "name", sorted({*SECRETS, "PYTHONPATH", "DYLD_INSERT_LIBRARIES"} - {*FOR_DOWNLOADS})
)
def test_a_download_gets_no_other_secret(name):
    """It runs code of the runtime, and needs nothing else."""
    assert name not in download_environment({name: "x"})


def test_a_download_takes_the_hubs_variables_of_server_env():
    """A token for one model only is written there."""
    found = download_environment({}, {"HF_TOKEN": "mine", "PYTHONPATH": "x"})
    assert found["HF_TOKEN"] == "mine"
    assert "PYTHONPATH" not in found
