"""Why no answer came from the gateway, and what this package's errors then advise."""

from __future__ import annotations

import ssl

import httpx2

# Not `make up`, which is for stack dev: this may be another stack's gateway.
GATEWAY_FIX = "./pulumiw up --refresh"
KEY_FIX = "take LITELLM_API_KEY from .env, or: ./pulumiw stack output litellmApiKey --show-secrets"


def why(error: httpx2.HTTPError, url: str) -> tuple[str, str]:
    """What is wrong if no answer came from `url`, and what fixes it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"the certificate of {url} is not trusted ({cause.verify_message})",
                "set SSL_CERT_FILE to the file of its certificate authority",
            )
        if isinstance(cause, ssl.SSLError):
            return f"the server at {url} does not use TLS", "check LITELLM_URL: http:// or https://"
        cause = cause.__cause__ or cause.__context__
    match error:
        case httpx2.ConnectTimeout():
            return f"could not connect to {url} in time", GATEWAY_FIX
        case httpx2.ConnectError():
            return f"nothing answers at {url}", GATEWAY_FIX
        case httpx2.TimeoutException():
            return f"{url} did not answer in time", GATEWAY_FIX
        case _:
            return (
                f"the server at {url} closed the connection without an answer",
                "check LITELLM_URL: it begins with https:// if the gateway uses TLS",
            )
