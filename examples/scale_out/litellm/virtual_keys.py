"""The keys of the programs that use the gateway: one NAME and one KEY on each line of a file.

LiteLLM's own virtual keys need a PostgreSQL database. The file is read at each request, so a key
that is taken out of it is refused from then on. LiteLLM runs this, in its own environment.
"""

import hmac
import os
from pathlib import Path

from fastapi import Request
from litellm.proxy._types import ProxyException, UserAPIKeyAuth


async def user_api_key_auth(request: Request, api_key: str) -> UserAPIKeyAuth:  # noqa: ARG001
    """Tell whose key it is, as `custom_auth` of LiteLLM's configuration wants it."""
    given = api_key.removeprefix("Bearer ").encode()
    for name, key in read_keys():
        if hmac.compare_digest(key.encode(), given):
            return UserAPIKeyAuth(api_key=key, user_id=name)
    raise ProxyException("The key is wrong", type="auth_error", param=None, code=401)


def read_keys() -> list[tuple[str, str]]:
    """Return whose keys there are; a few lines, read at once."""
    lines = Path(os.environ["VIRTUAL_KEYS"]).read_text().splitlines()
    pairs = [line.split() for line in lines]
    return [(pair[0], pair[1]) for pair in pairs if len(pair) > 1]
