"""A certificate authority of the test's own and a server's certificate for 127.0.0.1, made by the openssl command."""

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificates:
    """Files, and what a server uses them by."""

    ca: Path
    server: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """For a server that asks its clients for a certificate of the same authority."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.ca))
        context.load_cert_chain(self.server, self.key)
        context.verify_mode = ssl.CERT_REQUIRED
        return context


def make(folder: Path) -> Certificates:
    """Made anew, in about a tenth of a second."""
    ca, ca_key, server, key = (folder / name for name in ("ca.pem", "ca.key", "server.pem", "server.key"))
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    _openssl("req", "-x509", *new_key, "-keyout", ca_key, "-out", ca, "-subj", "/CN=an authority of tests")
    _openssl(
        *("req", "-x509", *new_key, "-keyout", key, "-out", server, "-subj", "/CN=redis"),
        *("-CA", ca, "-CAkey", ca_key, "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-addext", "basicConstraints=critical,CA:FALSE"),
    )
    return Certificates(ca, server, key)


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
