"""Who calls: somebody on this machine, somebody with a key."""

from __future__ import annotations

import ipaddress
import secrets

from fastapi import Request
from pydantic import SecretStr


def has_key(request: Request, key: SecretStr | None) -> bool:
    """Whether a request brings this key as its bearer token; never when there is no key."""
    if key is None:
        return False
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    wanted = key.get_secret_value().encode("utf-8", "surrogatepass")
    return scheme.lower() == "bearer" and secrets.compare_digest(given.encode(), wanted)


def is_local(request: Request) -> bool:
    """Whether a request comes from this machine."""
    return is_loopback(request.client.host if request.client else "")


def is_loopback(name: str) -> bool:
    """Whether a name or an address always means the machine it is said on."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def host_name(host: str) -> str:
    """The name or address in a Host header, without port and brackets, in small letters."""
    if host.startswith("["):
        return host[1:].split("]")[0].lower()
    return host.rsplit(":", 1)[0].lower() if host.count(":") == 1 else host.lower()
