"""The variables of a terminal that a service is given, which starts without them."""

from langchain_car_vllm import environment
from langchain_car_vllm.models.hub_account import absolute_folders
from langchain_car_vllm.runtime.uv_settings import absolute_settings
from langchain_car_vllm.support.proxy_variables import is_proxy_variable
from langchain_car_vllm.support.secret_names import is_secret_name, masked_text, without_users

# What of other programs' variables decides where things are and who is asked.
_KEPT = (
    environment.HF_HOME,
    environment.HF_HUB_CACHE,
    environment.HUGGINGFACE_HUB_CACHE,
    environment.XDG_CACHE_HOME,
    environment.HF_TOKEN_PATH,
    environment.HF_ENDPOINT,
    environment.HF_HUB_OFFLINE,
    environment.TRANSFORMERS_OFFLINE,
    environment.SSL_CERT_FILE,
    environment.PATH,
)
# And how it is reached.
_CERTIFICATES = ("SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_CLIENTS = ("HF_", "UV_")


def lasting_variables() -> dict[str, str]:
    """Return the settings that a service needs to find what this terminal finds.

    Keys, tokens and addresses with a password in them stay out of a file that lasts.
    """
    own = [n for n, v in environment.VARIABLES.items() if v.group == "own" and not v.is_secret]
    kept = {n: environment.VARIABLES[n].text() for n in (*own, *(v.name for v in _KEPT))}
    others = environment.inherited_environment().items()
    set_here = {name: text for name, text in others if _tells_the_way(name, text)}
    set_here |= {name: text for name, text in kept.items() if text is not None}
    set_here |= absolute_folders(set_here) | absolute_settings(set_here)
    return {n: text for n, text in set_here.items() if without_users(masked_text(text)) == text}


def _tells_the_way(name: str, text: str) -> bool:
    """Tell whether a variable decides how the network is reached, and holds no password.

    The user of an index, which means nothing without a password, may be a token.
    """
    if not text or "@" in text or is_secret_name(name) or name.endswith("_USERNAME"):
        return False
    return is_proxy_variable(name) or name in _CERTIFICATES or name.startswith(_CLIENTS)
