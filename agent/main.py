"""Starting the agent: ``paretune-agent`` on a board, ``paretune agent`` where paretune is."""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import EnvironmentFault, InputError, ParetuneError
from ..targets.onnx_session import require_runtime
from ..targets.token_file import read_or_create_token
from ..targets.wire import DEFAULT_PORT
from .bench import Bench
from .certificate import server_context
from .limits import Limits
from .server import Server, version

LOOPBACK = "127.0.0.1"


def run_agent(
    bind: str = LOOPBACK,
    port: int = DEFAULT_PORT,
    token_file: Path | None = None,
    cert: Path | None = None,
    key: Path | None = None,
    memory_mb: int = 2048,
    limits: Limits | None = None,
) -> None:
    """Serve until interrupted (SIGINT or SIGTERM), then remove everything written and end the
    process: connections have threads that may still write, and Python aborts where it meets one.

    bind: loopback needs nothing more; any other address needs ``token_file`` and gets TLS. A token
    file that does not exist is written; without cert and key, ``TOKEN_FILE.cert`` and ``.key`` are
    used, made at the first start.
    Raises InputError, or EnvironmentFault where the address cannot be had.
    """
    require_runtime()
    if memory_mb < 1:
        raise InputError("--memory-mb", f"expected a positive number, got {memory_mb}", "")
    local = _is_loopback(bind)
    if (cert is None) != (key is None):
        raise InputError("--cert and --key", "one is given without the other", "give both")
    if token_file is None and not local:
        raise InputError(
            "--bind",
            f"{bind!r} can be reached from other machines, which needs a token",
            "add --token-file FILE (made if it does not exist), or use an SSH tunnel to loopback",
        )
    if cert is None and not local:
        cert, key = Path(f"{token_file}.cert"), Path(f"{token_file}.key")
    token, made = read_or_create_token(token_file) if token_file is not None else (None, False)
    context, pin = server_context(cert, key) if cert and key else (None, "")
    limits = limits or Limits(memory_bytes=memory_mb << 20, threads=os.cpu_count() or 1)
    bench = Bench(limits)
    try:
        with _listen((bind, port), bench, token, context) as server:
            _stop_at_signals(server)
            host = f"[{bind}]" if ":" in bind else bind
            scheme = "https" if context else "http"
            print(f"paretune-agent {version()} listens at {scheme}://{host}:{server.port}")
            if pin:
                print(f"fingerprint {pin}")
            if token_file is not None:
                print(f"token in {token_file}" + (" (made now)" if made else ""))
            sys.stdout.flush()
            server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    finally:
        bench.close()
    sys.stdout.flush()
    os._exit(0)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``paretune-agent``."""
    parser = argparse.ArgumentParser(
        "paretune-agent", description="Measures exported models on this machine for paretune."
    )
    parser.add_argument("--bind", default=LOOPBACK, metavar="ADDR", help="address to listen at")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 = any free one")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="made if it is not there")
    parser.add_argument("--cert", type=Path, metavar="FILE", help="TLS certificate (PEM)")
    parser.add_argument("--key", type=Path, metavar="FILE", help="its key (PEM)")
    parser.add_argument("--memory-mb", type=int, default=2048, help="for one job (default: 2048)")
    parser.add_argument("--version", action="version", version=version())
    given = parser.parse_args(arguments)
    try:
        run_agent(given.bind, given.port, given.token_file, given.cert, given.key, given.memory_mb)
    except ParetuneError as error:
        print(f"paretune-agent: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _listen(address: tuple[str, int], bench: Bench, token: str | None, context: Any) -> Server:
    try:
        return Server(address, bench, token, context)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EnvironmentFault(
            f"{address[0]} port {address[1]}: cannot be listened at ({reason}); "
            "choose another --port, or stop what listens there"
        ) from error


def _is_loopback(bind: str) -> bool:
    try:
        return ipaddress.ip_address(bind).is_loopback
    except ValueError:
        pass
    try:
        found = {info[4][0] for info in socket.getaddrinfo(bind, None)}
    except (OSError, UnicodeError) as error:
        raise InputError("--bind", f"{bind!r} is no address of this machine", "") from error
    return all(ipaddress.ip_address(str(one).partition("%")[0]).is_loopback for one in found)


def _stop_at_signals(server: Server) -> None:
    """Let Ctrl-C and SIGTERM end ``serve_forever`` between two connections: raised in the middle of
    one, the interrupt may be lost."""

    def stop(number: int, frame: Any) -> None:
        threading.Thread(target=server.shutdown, daemon=True).start()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


if __name__ == "__main__":
    main()
