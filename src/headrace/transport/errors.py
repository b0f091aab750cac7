"""What clients are told when a request fails: statuses, and TGI's and OpenAI's JSON shapes."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType

import msgspec

from headrace.link.errors import ErrorCode, HeadraceError, InvalidRequest

_STATUS: Mapping[str, int] = MappingProxyType(
    {
        ErrorCode.VALIDATION: 422,
        ErrorCode.TEMPLATE: 422,
        ErrorCode.MISSING_TEMPLATE_VARIABLE: 422,
        ErrorCode.TOOL: 422,
        ErrorCode.GENERATION: 424,
        ErrorCode.OVERLOADED: 429,
        ErrorCode.INCOMPLETE_GENERATION: 500,
        ErrorCode.DEADLINE_EXCEEDED: 504,
        ErrorCode.ENGINE_LOST: 503,
        ErrorCode.SHUTTING_DOWN: 503,
    }
)

_OPENAI_TYPE: Mapping[int, str] = MappingProxyType(
    {401: "invalid_request_error", 404: "invalid_request_error", 429: "rate_limit_error"}
)


class RequestFailure(HeadraceError):
    """A request ends with this error.

    Attributes:
        status: HTTP status, for as long as no response has begun.
        error_type: TGI's ``error_type`` and OpenAI's ``code``.
        param: The offending field, where there is one.
        retry_after: Seconds after which another attempt makes sense.
        closes: Whether the connection cannot be used for another request.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        error_type: str,
        param: str | None = None,
        retry_after: int | None = None,
        closes: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.error_type = error_type
        self.param = param
        self.retry_after = retry_after
        self.closes = closes

    @classmethod
    def of_code(cls, code: str, message: str, retry_after: int | None = None) -> RequestFailure:
        """The failure that an ``ErrorCode`` stands for."""
        return cls(
            message, status=_STATUS.get(code, 424), error_type=str(code), retry_after=retry_after
        )

    @classmethod
    def of_error(cls, error: HeadraceError) -> RequestFailure:
        """The failure that any error raised on purpose amounts to."""
        if isinstance(error, RequestFailure):
            return error
        failure = cls.of_code(error.code, str(error))
        if isinstance(error, InvalidRequest):
            failure.param = error.field
        return failure

    @classmethod
    def of_status(cls, status: int, message: str | None = None) -> RequestFailure:
        """An HTTP failure that has no code of its own, such as an unknown route."""
        phrase = HTTPStatus(status).phrase
        return cls(message or phrase, status=status, error_type=phrase.lower().replace(" ", "_"))

    def body(self, openai: bool) -> bytes:
        """The JSON document that tells of it.

        Args:
            openai: In OpenAI's shape instead of TGI's.
        """
        if not openai:
            return msgspec.json.encode({"error": self.message, "error_type": self.error_type})
        kind = _OPENAI_TYPE.get(
            self.status, "invalid_request_error" if self.status < 424 else "server_error"
        )
        return msgspec.json.encode(
            {
                "error": {
                    "message": self.message,
                    "type": kind,
                    "param": self.param,
                    "code": self.error_type,
                }
            }
        )

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of the response that tells of it."""
        headers = [(b"content-type", b"application/json")]
        if self.retry_after is not None:
            headers.append((b"retry-after", str(self.retry_after).encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self.closes:
            headers.append((b"connection", b"close"))
        return headers


def speaks_openai(path: str) -> bool:
    """Whether clients of ``path`` expect OpenAI's shape of errors."""
    return path.startswith("/v1/")
