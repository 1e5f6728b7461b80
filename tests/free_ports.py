"""Ports of this machine for servers that are told theirs."""

from __future__ import annotations

import random
import socket


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on. Not of those that the system gives to outgoing connections (from 32768 on
    Linux, 49152 elsewhere): one of another test's could take it before its server does.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(12_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found
