"""Finds what in a LiteLLM database was encrypted with another salt key than a replica has.

`console/litellm_database.py` runs this text in a replica's container: the salt key stays there. Standard input has
`clients`, the hash of each client's key by its name, and `values`, what LiteLLM has encrypted. It prints the names of
the clients whose keys do not belong to the salt key, and how many of the values do not.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib
import json
import sys
from pathlib import Path
from typing import Any

SALT_KEY = Path("/run/secrets/LITELLM_SALT_KEY")
GCM = "v2:gcm:"
"""The prefix of what newer releases encrypt if `encryption_algorithm` is aes-256-gcm."""
NONCE_BYTES = 12
SEALED_BYTES = 40
"""The smallest size of anything encrypted otherwise: a nonce of 24 bytes and 16 bytes that authenticate the text."""


def token_of(client: str, salt_key: str) -> str:
    """The hash of a client's key (litellm/keys.py)."""
    digest = hmac.new(salt_key.encode(), f"llm-gateway client {client}".encode(), hashlib.sha256)
    return hashlib.sha256(f"sk-{digest.hexdigest()}".encode()).hexdigest()


def is_sealed(value: str) -> bool:
    """Whether a text may be one that LiteLLM has encrypted: it stores some unencrypted."""
    try:
        return value.startswith(GCM) or len(_decoded(value)) >= SEALED_BYTES
    except ValueError:
        return False


def _decoded(value: str) -> bytes:
    return base64.b64decode(value.replace("-", "+").replace("_", "/"), validate=True)


def opens(value: str, salt_key: str) -> bool:
    """Whether a salt key decrypts what LiteLLM's encrypt_decrypt_utils.py has encrypted."""
    key = hashlib.sha256(salt_key.encode()).digest()
    try:
        if value.startswith(GCM):
            aead = importlib.import_module("cryptography.hazmat.primitives.ciphers.aead")  # of the image, as below
            sealed = base64.urlsafe_b64decode(value.removeprefix(GCM))
            aead.AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
        else:
            importlib.import_module("nacl.secret").SecretBox(key).decrypt(_decoded(value))
    except ImportError:
        raise
    except Exception:  # noqa: BLE001 -- each library has errors of its own for a wrong key
        return False
    return True


def compared(given: dict[str, Any], salt_key: str) -> dict[str, Any]:
    """What does not belong to a salt key."""
    return {
        "clients": [name for name, token in given["clients"].items() if token != token_of(name, salt_key)],
        "values": sum(is_sealed(value) and not opens(value, salt_key) for value in given["values"]),
    }


if __name__ == "__main__":
    print(json.dumps(compared(json.load(sys.stdin), SALT_KEY.read_text(encoding="utf-8").strip())))
