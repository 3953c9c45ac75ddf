"""The errors of the module, one tree.

    LLMError
    ├── NotConfiguredError            a setting is missing or wrong
    ├── OrganizationNotFoundError     no organization has that id
    ├── DatabaseUnavailableError      the organization could not be read
    ├── GatewayUnreachableError       nothing answers at LITELLM_URL, or the gateway has no replica or database left
    ├── GatewayRefusedKeyError        the gateway does not know LITELLM_API_KEY
    ├── BudgetExceededError           what LITELLM_API_KEY, or its team, may spend is used up
    ├── RequestError                  the gateway answered, for one model, with an error
    │   ├── ModelUnknownError         no model of that name is served
    │   ├── ContextTooLongError       the messages are longer than the model takes
    │   ├── ContentRefusedError       the provider refused the content
    │   ├── RateLimitedError          too many requests
    │   ├── TimedOutError             no answer in time
    │   ├── ProviderError             the model's provider failed, or refused the gateway's key
    │   └── RequestRejectedError      the request itself is wrong
    ├── StreamInterruptedError        a stream broke off after its first content; `.content` is what had arrived
    └── FallbackFailedError           the preferred model and the fallback failed: `.primary`, `.fallback`

Messages are one line and name the next step. None holds a key, a prompt or a database URL. Bad arguments are a
ValueError, raised before any request.
"""

from __future__ import annotations


class LLMError(Exception):
    """Base of everything that can go wrong on the way to an answer."""


class NotConfiguredError(LLMError):
    """A setting is missing or wrong; the message names each one by its environment variable."""


class OrganizationNotFoundError(LLMError):
    """No organization has that id."""


class DatabaseUnavailableError(LLMError):
    """The organization could not be read from the database at DATABASE_URL."""


class GatewayUnreachableError(LLMError):
    """Nothing answers at LITELLM_URL, or the gateway has no replica left, or cannot look the key up now."""


class GatewayRefusedKeyError(LLMError):
    """The gateway does not know LITELLM_API_KEY."""


class BudgetExceededError(LLMError):
    """The budget of LITELLM_API_KEY or of its team is used up, or would be by this request.

    No other model is asked, because it would be refused too.
    """


class RequestError(LLMError):
    """The gateway answered a request for one model with an error."""

    def __init__(self, message: str, *, model: str, status: int | None = None, request_id: str | None = None) -> None:
        super().__init__(message)
        self.model = model
        """The model that was asked."""
        self.status = status
        """The HTTP status of the answer; None for a timeout or a broken connection."""
        self.request_id = request_id
        """The gateway's id of the request, which its log has; None if it gave none."""


class ModelUnknownError(RequestError):
    """No model of that name is served."""


class ContextTooLongError(RequestError):
    """The messages are longer than the model accepts."""


class ContentRefusedError(RequestError):
    """The provider refused the content."""


class RateLimitedError(RequestError):
    """Too many requests, to the gateway or to the provider."""


class TimedOutError(RequestError):
    """No answer in time."""


class ProviderError(RequestError):
    """The model's provider failed, or refused the key that the gateway has for it."""


class RequestRejectedError(RequestError):
    """The request itself is wrong, and would be for any model."""


class StreamInterruptedError(LLMError):
    """A stream broke off after its first content."""

    def __init__(self, message: str, *, content: str) -> None:
        super().__init__(message)
        self.content = content
        """The text that had arrived."""


class FallbackFailedError(LLMError):
    """The organization's preferred model failed, and then its fallback did too."""

    def __init__(self, primary: RequestError, fallback: LLMError, *, fallback_model: str) -> None:
        super().__init__(f"{primary}; the fallback {fallback_model} failed too: {fallback}")
        self.primary = primary
        """Why the preferred model failed."""
        self.fallback = fallback
        """Why the fallback failed."""
