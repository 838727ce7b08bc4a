"""gRPC between the cluster's own processes: how addresses are written, and what every channel is told."""

from typing import Final

DIRECT: Final = ("grpc.enable_http_proxy", 0)
"""`http_proxy` is for the way out: nodes reach each other without it."""


def at(host: str, port: int) -> str:
    """host:port as gRPC reads it; an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
