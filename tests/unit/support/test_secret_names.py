"""Names that give a secret away, and those that only look so."""

import pytest
from langchain_core.load import dumps

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.support.printable import to_sentence
from langchain_car_vllm.support.secret_names import (
    is_secret_name,
    masked_text,
    secrets_of_body,
    without_user,
    without_users,
)

SECRET = (
    *(
        "api_key",
        "apiKey",
        "X-API-Key",
        "ApiKeys",
        "key",
        "openai_key_2",
        "hf_token",
        "HF_TOKEN",
        "access_token",
        "auth_token",
    ),
    *("refresh_token", "id_token", "session-token", "bearerToken", "token", "--hf-token", "auth"),
    *("X-Auth", "oauth", "Authorization", "proxy-authorization", "password", "passwd", "db_pwd"),
    *("passphrase", "smtp_pass", "client_secret", "credentials", "Set-Cookie", "jwt", "sig"),
    *("max_tokens_secret", "tokenizer_auth", "access_token_secret"),
    *("X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token"),
)
HARMLESS = (
    *("max_tokens", "min_tokens", "tokens", "stop_token_ids", "eos_token", "bos_token_id"),
    *("skip_special_tokens", "add_bos_token", "thinking_token_budget", "token_type", "tokenizer"),
    *("keep_alive", "author", "authors", "design", "bypass", "pass_through", "--max-tokens"),
    *("top_k", "temperature", "first_token", "keyword", "keyboard_layout"),
)


@pytest.mark.parametrize("name", SECRET)
def test_what_stands_under_the_name_of_a_secret_is_shown_to_nobody(name):
    """A token of the Hub or of OAuth is one, in whatever way it is written."""
    assert is_secret_name(name)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_counts_or_names_tokens_of_a_model_is_no_secret(name):
    """It would be lost to a model that is written down and loaded again."""
    assert not is_secret_name(name)


def test_no_view_of_a_model_shows_a_token_of_somebodys():
    """In a body, or in the address of a service that it names."""
    body = {"hf_token": "hush", "image": "https://example.org/a?n=1&access_token=hush#a"}
    model = ChatVllmMlx(model="m", base_url="http://127.0.0.1:9/v1", extra_body=body)
    for shown in (repr(model), dumps(model), str(model.model_dump())):
        assert "hush" not in shown
        assert "n=1" in shown


def test_what_stands_under_the_name_of_a_secret_is_found_however_deep():
    """Also in a value that holds itself, which no request can."""
    body = {"a": [{"api_key": ["one", {"b": "two"}]}, "three"], "max_tokens": "four"}
    body["self"] = body
    assert sorted(secrets_of_body(body).values()) == ["one", "two"]
    assert secrets_of_body(None) == {}


@pytest.mark.parametrize(
    "place",
    [
        *("http://me:hush@host/v1", "me:hush@host/v1", "hush@host", "socks5h://me:hush@host:1080"),
        *("me:hu:sh@host", "https://hush@host/a@b"),
    ],
)
def test_an_address_shows_no_user(place: str):
    """With or without a scheme, in an address that is shown and in a sentence that quotes it."""
    assert "hush" not in without_user(place)
    assert "host" in without_user(place)
    for text in (place, f"not `{place}`", f"HF_ENDPOINT={place}", f"a http://b.org {place}, c"):
        if ":" in place:
            assert "hush" not in to_sentence(text)
            assert "hu:sh" not in without_users(masked_text(text))


@pytest.mark.parametrize(
    "text",
    [
        *("me@example.org", "ask me@example.org: now", "/opt/python@3.12/bin:/usr/bin", "a@b"),
        *("12:30", "http://host:1/v1", "https://github.com/a/b@v1", "org/name@main"),
    ],
)
def test_what_names_no_password_stays(text: str):
    """A model that is written down and loaded again needs it."""
    assert to_sentence(text) == masked_text(text) == text


@pytest.mark.parametrize("text", ["mailto:bob@example.com", "at 12:30@office", "me:hush@host"])
def test_texts_of_a_model_that_is_loaded_again_stay(text: str):
    """What looks like an address without a scheme may be anything."""
    assert masked_text(text) == text
