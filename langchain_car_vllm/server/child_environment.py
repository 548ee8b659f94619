"""The environments of the processes that a server runs in and that a model is downloaded by.

Both are lists of what is let through. A model's files come from somebody else, and the process that
reads them must not hold the user's keys; what a server needs beyond this list goes into
`server_env`.
"""

from collections.abc import Mapping
from pathlib import Path

from langchain_car_vllm.environment import CAR_VLLM_LAUNCH_KERNELS
from langchain_car_vllm.models.hub_account import hub_variables
from langchain_car_vllm.support.proxy_variables import proxy_variables
from langchain_car_vllm.support.secret_names import is_secret_name

_NAMES = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TZ"),
        *("LANG", "LANGUAGE", "XDG_CACHE_HOME", "__CF_USER_TEXT_ENCODING"),
        *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"),
        "LD_PRELOAD",  # such as a faster BLAS, on Linux
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        # They speak of tokens of text.
        *("TOKENIZERS_PARALLELISM", "VLLM_MLX_NO_FINAL_CONTENT_TOKEN_LIMIT"),
    }
)
_PREFIXES = (
    *("LC_", "MLX_", "METAL_", "MTL_", "VLLM_MLX_"),
    *("HF_", "HUGGINGFACE_HUB_", "TRANSFORMERS_", "TQDM_"),
    *("OMP_", "OPENBLAS_", "MKL_", "VECLIB_", "MALLOC_"),
)
# What stays behind although its prefix is let through, beside secrets: where the Hub's token lies,
# the address of the Hub, which may hold a password, and a file of commands that the server would
# run.
_REFUSED = frozenset({"HF_TOKEN_PATH", "HF_ENDPOINT", "VLLM_MLX_MCP_CONFIG"})
_DOWNLOAD_NAMES = frozenset(
    {
        *("HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"),
        *("HF_HUB_DISABLE_IMPLICIT_TOKEN", "TMPDIR", "TMP", "TEMP"),
    }
)
_COMMON = {"PYTHONUNBUFFERED": "1", "TQDM_POSITION": "-1"}


def server_environment(
    inherited: Mapping[str, str],
    added: Mapping[str, str],
    *,
    temporary: Path,
    kernels: Path,
    offline: bool,
) -> dict[str, str]:
    """Return the environment of a server.

    Args:
        inherited: Of this process; what is not on the list stays behind, and so do the Hub's token
            and the proxies.
        added: The user's `server_env`, which has the last word.
        temporary: The server's own folder for temporary files: that of its first client may end
            with a session.
        kernels: Where MLX compiles, which the launcher is told.
        offline: Whether the model lies on the disk, so that the Hub need not be asked.
    """
    environment = {name: value for name, value in inherited.items() if _is_let_through(name)}
    environment |= _COMMON | {"VLLM_MLX_SIMPLE_ENGINE_LOCK_ADMISSION": "wait"}
    environment["TMPDIR"] = str(temporary)
    environment[CAR_VLLM_LAUNCH_KERNELS.name] = str(kernels)
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    return environment | dict(added)


def download_environment(
    inherited: Mapping[str, str], added: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment of a download: the Hub's token and the proxies come along.

    Args:
        inherited: Of this process.
        added: The user's `server_env`, of which a download takes the Hub's variables.
    """
    environment = {
        name: value
        for name, value in inherited.items()
        if _is_let_through(name) or name in _DOWNLOAD_NAMES
    }
    return environment | proxy_variables(inherited) | _COMMON | hub_variables(added or {})


def _is_let_through(name: str) -> bool:
    if name in _NAMES:
        return True
    return name.startswith(_PREFIXES) and name not in _REFUSED and not is_secret_name(name)
