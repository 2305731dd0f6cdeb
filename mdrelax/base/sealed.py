"""Sealed documents: JSON objects with the SHA-256 of their own content, so that a flipped bit is noticed.

The hash detects damage, not malice: whoever changes a document on purpose can change its hash, too.
"""

import hashlib
import json
from typing import Any

__all__ = ["SEAL", "seal", "unseal"]

SEAL = "content"  # the key of the hash


def seal(document: dict[str, Any]) -> dict[str, Any]:
    """The document with its hash, the last key.

    >>> from mdrelax.base.sealed import seal, unseal
    >>> unseal(seal({"cutoff": 4.0}))
    {'cutoff': 4.0}
    >>> unseal({**seal({"cutoff": 4.0}), "cutoff": 6.0})
    Traceback (most recent call last):
    ...
    ValueError: its content does not match its hash
    """
    return {**document, SEAL: _hash(document)}


def unseal(document: dict[str, Any]) -> dict[str, Any]:
    """The document without its hash; raises ``ValueError`` if that is missing, or of another content."""
    inside = {key: value for key, value in document.items() if key != SEAL}
    if document.get(SEAL) != _hash(inside):
        raise ValueError("its content does not match its hash")
    return inside


def _hash(document: dict[str, Any]) -> str:
    as_read = json.loads(json.dumps(document))  # keys are words, and tuples are lists
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()
