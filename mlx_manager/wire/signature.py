"""What goes out beside thinking: it says that the thinking is ours, and keeps it for clients that send back no more."""

from __future__ import annotations

import binascii
import hashlib
import hmac
from base64 import b64decode, b64encode

DIGEST_SIZE = hashlib.sha256().digest_size


class Signer:
    """Signs thinking with a key that only this process has.

    A signature is the HMAC-SHA256 of the thinking in base64, with the thinking itself behind it where the block that
    goes out is empty (`display` `omitted`): it comes back with the conversation, as the client's only copy. So is
    OpenAI's `encrypted_content`.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def sign(self, thinking: str, *, is_shown: bool) -> str:
        """Return the signature of a block; it carries the thinking unless the block does."""
        # Half a surrogate pair can be in JSON, and so in what comes back.
        text = thinking.encode("utf-8", "surrogatepass")
        return b64encode(self._digest(text) + (b"" if is_shown else text)).decode()

    def read(self, thinking: str, signature: str) -> str:
        """Return what a block that came back has to say.

        That is its own text, whoever wrote it. An empty block says what its signature carries, if that is ours: one of
        another server, or of this one before it was restarted, says nothing.
        """
        return thinking or self._carried(signature)

    def is_ours(self, thinking: str, signature: str) -> bool:
        """Whether this process has signed a block."""
        digest, carried = _parts(signature)
        text = thinking.encode("utf-8", "surrogatepass") or carried
        return hmac.compare_digest(digest, self._digest(text))

    def _carried(self, signature: str) -> str:
        if not self.is_ours("", signature):
            return ""
        return _parts(signature)[1].decode("utf-8", "surrogatepass")

    def _digest(self, text: bytes) -> bytes:
        return hmac.digest(self._key, text, "sha256")


def _parts(signature: str) -> tuple[bytes, bytes]:
    """Return digest and carried text; of what is no base64, nothing."""
    try:
        signed = b64decode(signature.encode("ascii", "replace"), validate=True)
    except binascii.Error:
        signed = b""
    return signed[:DIGEST_SIZE], signed[DIGEST_SIZE:]
