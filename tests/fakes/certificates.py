"""A certificate that nobody trusts."""

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest


def make_certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Return what shows it at `localhost` or `hub.example`, and the certificate, made anew."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    options = f"-x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -days 2"
    names = "subjectAltName=DNS:localhost,DNS:hub.example,IP:127.0.0.1"
    subprocess.run(
        ["openssl", "req", *options.split(), "-subj", "/CN=localhost", "-addext", names],
        check=True,
        capture_output=True,
    )
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(certificate, key)
    return shown, certificate
