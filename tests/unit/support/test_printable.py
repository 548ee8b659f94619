"""Text of others in a sentence of ours."""

import time

import pytest

from langchain_car_vllm.support.printable import to_sentence


@pytest.mark.parametrize("password", ["secret", "sec@secret", "sec:secret", "%2Fsecret"])
def test_an_address_loses_its_password(password: str):
    """Whatever it may hold unescaped in an address that works; what stands behind it stays."""
    text = to_sentence(
        f"no answer from https://me:{password}@index.example/simple/a@b, or from c@d"
    )
    assert text == "no answer from https://***@index.example/simple/a@b, or from c@d"


def test_a_long_text_takes_no_time():
    """However many addresses there are, or how long one is."""
    began = time.monotonic()
    to_sentence("http://" + "a:" * 200_000)
    to_sentence("http://a:b@" * 50_000)
    assert time.monotonic() - began < 5
