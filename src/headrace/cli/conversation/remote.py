"""A model on a running server, spoken to through ``/v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import msgspec

from headrace.cli.conversation.partner import AnswerStyle, Message
from headrace.link.errors import HeadraceError

_CONNECT_SECONDS = 5.0


class RemotePartner:
    """The model behind a server's address.

    Args:
        url: ``http://host:port``, with or without ``/v1``.
        api_key: Sent as a bearer token.

    Raises:
        HeadraceError: nothing that speaks OpenAI's routes answers there.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1"
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
        self._client = httpx.Client(headers=headers, timeout=timeout)
        try:
            response = self._client.get(f"{self._url}/models")
            self._check(response)
            self._model = str(response.json()["data"][0]["id"])
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TransportError) as error:
            raise HeadraceError(f"no server answers at {url}: {error}") from None
        except (ValueError, LookupError, TypeError):
            raise HeadraceError(f"{url} is not a server with OpenAI's routes") from None

    @property
    def name(self) -> str:
        """The served model's name and where it is served."""
        return f"{self._model} at {self._url.removesuffix('/v1')}"

    def answer(self, messages: list[Message], style: AnswerStyle) -> Iterator[str]:
        """Stream the answer; closing the iterator closes the connection, which frees the server."""
        body = {
            "model": self._model,
            "messages": msgspec.to_builtins(messages),
            "stream": True,
            "temperature": style.temperature,
            "max_tokens": style.max_tokens,
            "seed": style.seed,
        }
        given = {key: value for key, value in body.items() if value is not None}
        try:
            with self._client.stream(
                "POST", f"{self._url}/chat/completions", json=given
            ) as response:
                if response.is_error:
                    response.read()
                self._check(response)
                for line in response.iter_lines():
                    if line.startswith("data:") and line != "data: [DONE]":
                        yield _content(msgspec.json.decode(line.removeprefix("data:").strip()))
        except httpx.TransportError as error:
            raise HeadraceError(f"the server is lost: {error or type(error).__name__}") from None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _check(self, response: httpx.Response) -> None:
        if response.is_error:
            try:
                reason = _error_text(response.json())
            except ValueError:
                reason = response.text[:200]
            raise HeadraceError(f"the server answers {response.status_code}: {reason}")


def _content(event: Any) -> str:
    if "error" in event:
        raise HeadraceError(_error_text(event))
    return "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))


def _error_text(document: Any) -> str:
    error = document.get("error", document) if isinstance(document, dict) else document
    return str(error.get("message", error) if isinstance(error, dict) else error)
