"""TLS of the agent: a certificate that was given, or a self-signed one made at the first start."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import subprocess
from pathlib import Path

from ..errors import InputError

DAYS = 825


def server_context(cert: Path, key: Path) -> tuple[ssl.SSLContext, str]:
    """The TLS context for a certificate, and its fingerprint for clients to pin.

    Where neither file exists a self-signed certificate is made (with the ``openssl`` command).
    Raises InputError where the files are no pair, or the key can be read by others.
    """
    if not cert.exists() and not key.exists():
        _make(cert, key)
    if key.exists() and os.name == "posix" and key.stat().st_mode & 0o077:
        raise InputError("--key", f"{str(key)!r} can be read by others", f"chmod 600 {key}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key, password="")
        first = cert.read_text(encoding="ascii", errors="replace").partition("-----BEGIN CERT")[1:]
        der = ssl.PEM_cert_to_DER_cert("".join(first).partition("-----END CERT")[0] + _END)
    except (OSError, ValueError) as error:
        raise InputError(
            "--cert", f"{str(cert)!r} and {str(key)!r} are no certificate and its key ({error})", ""
        ) from error
    return context, fingerprint(der)


def fingerprint(der: bytes) -> str:
    """``sha256:`` and the SHA-256 of a certificate in DER, in hexadecimal."""
    return "sha256:" + hashlib.sha256(der).hexdigest()


_END = "-----END CERTIFICATE-----\n"


def _make(cert: Path, key: Path) -> None:
    name = socket.gethostname()[:60] or "board"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", str(DAYS), "-subj", f"/CN={name}", "-keyout", str(key)]
    command += ["-addext", f"subjectAltName=DNS:{name},DNS:localhost,IP:127.0.0.1"]
    former = os.umask(0o077)
    try:
        subprocess.run([*command, "-out", str(cert)], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", b"") or str(error).encode()
        raise InputError(
            "--cert",
            f"no certificate could be made ({detail.decode(errors='replace').strip()[-200:]})",
            "install openssl, give --cert and --key, or stay on loopback behind an SSH tunnel",
        ) from error
    finally:
        os.umask(former)
