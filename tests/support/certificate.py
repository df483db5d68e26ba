"""A certificate that nobody else has signed, and its key: made here, for 127.0.0.1, without a tool or a package."""

from __future__ import annotations

import base64
import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

# The curve P-256: https://www.secg.org/sec2-v2.pdf, 2.4.2
PRIME = 2**256 - 2**224 + 2**192 + 2**96 - 1
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
BASE = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
Point = tuple[int, int] | None

# Identifiers, encoded: https://www.rfc-editor.org/rfc/rfc5480, rfc5758, rfc5280
EC_KEY, P256 = bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06082a8648ce3d030107")
ECDSA_SHA256 = bytes.fromhex("06082a8648ce3d040302")
COMMON_NAME, ALTERNATIVE_NAME = bytes.fromhex("0603550403"), bytes.fromhex("0603551d11")
BASIC_CONSTRAINTS = bytes.fromhex("0603551d13")


def make_certificate(folder: Path, address: str = "127.0.0.1") -> Path:
    """Write a file with a key and with the certificate that it has signed for itself."""
    key = secrets.randbelow(ORDER - 1) + 1
    public = _times(key, BASE)
    assert public is not None
    point = b"\x04" + b"".join(number.to_bytes(32, "big") for number in public)
    signed = _to_be_signed(point, address)
    algorithm = _sequence(ECDSA_SHA256)
    certificate = _sequence(signed, algorithm, _bits(_signature(key, signed)))
    key_info = _sequence(_integer(1), _tagged(0x04, key.to_bytes(32, "big")), _tagged(0xA0, P256))
    file = folder / "certificate.pem"
    file.write_text(_pem("EC PRIVATE KEY", key_info) + _pem("CERTIFICATE", certificate))
    return file


def _to_be_signed(point: bytes, address: str) -> bytes:
    now = datetime.now(UTC)
    validity = [
        _tagged(0x17, f"{moment:%y%m%d%H%M%SZ}".encode())
        for moment in (now - timedelta(days=1), now + timedelta(days=1))
    ]
    name = _sequence(_tagged(0x31, _sequence(COMMON_NAME, _tagged(0x0C, b"collector"))))
    names = _sequence(_tagged(0x87, ip_address(address).packed))
    is_authority = _sequence(_tagged(0x01, b"\xff"))
    return _sequence(
        _tagged(0xA0, _integer(2)),
        _integer(secrets.randbits(63)),
        _sequence(ECDSA_SHA256),
        name,
        _sequence(*validity),
        name,
        _sequence(_sequence(EC_KEY, P256), _bits(point)),
        _tagged(
            0xA3,
            _sequence(
                _sequence(ALTERNATIVE_NAME, _tagged(0x04, names)),
                _sequence(BASIC_CONSTRAINTS, _tagged(0x01, b"\xff"), _tagged(0x04, is_authority)),
            ),
        ),
    )


def _signature(key: int, message: bytes) -> bytes:
    """ECDSA, with nothing done against those who watch the clock: the key is for one test."""
    digest = int.from_bytes(hashlib.sha256(message).digest(), "big")
    once = secrets.randbelow(ORDER - 1) + 1
    point = _times(once, BASE)
    assert point is not None
    left = point[0] % ORDER
    right = pow(once, -1, ORDER) * (digest + left * key) % ORDER
    return _sequence(_integer(left), _integer(right))


def _times(factor: int, point: Point) -> Point:
    product: Point = None
    while factor:
        if factor & 1:
            product = _sum(product, point)
        point = _sum(point, point)
        factor >>= 1
    return product


def _sum(one: Point, other: Point) -> Point:
    if one is None or other is None:
        return one or other
    if one == other:
        slope = (3 * one[0] ** 2 - 3) * pow(2 * one[1], -1, PRIME)
    elif one[0] == other[0]:
        return None
    else:
        slope = (other[1] - one[1]) * pow(other[0] - one[0], -1, PRIME)
    x = (slope**2 - one[0] - other[0]) % PRIME
    return x, (slope * (one[0] - x) - one[1]) % PRIME


def _tagged(tag: int, content: bytes) -> bytes:
    """A value in DER."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _sequence(*parts: bytes) -> bytes:
    return _tagged(0x30, b"".join(parts))


def _integer(number: int) -> bytes:
    return _tagged(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _bits(content: bytes) -> bytes:
    return _tagged(0x03, b"\x00" + content)


def _pem(kind: str, content: bytes) -> str:
    return f"-----BEGIN {kind}-----\n{base64.encodebytes(content).decode()}-----END {kind}-----\n"
