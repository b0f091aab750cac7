"""What is printed once the server can take work: where it is and a request to try."""

from __future__ import annotations

import json
import shlex

from headrace import __version__
from headrace.transport.settings import TransportSettings

_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def ready_line(settings: TransportSettings, port: int, model_id: str, *, is_chat: bool) -> str:
    """One line with the address and a ``curl`` that works as it stands.

    Args:
        port: The port that is listened on (``settings.port`` may be 0).
        is_chat: The model has a chat template.
    """
    host = _EVERY_ADDRESS.get(settings.hostname, settings.hostname)
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if is_chat:
        route = "/v1/chat/completions"
        body: dict[str, object] = {"messages": [{"role": "user", "content": "Hello!"}]}
    else:
        route, body = "/generate", {"inputs": "Once upon a time"}
    headers = "-H 'content-type: application/json'"
    if settings.api_keys:
        headers += ' -H "authorization: Bearer $API_KEY"'
    request = f"curl {address}{route} {headers} -d {shlex.quote(json.dumps(body))}"
    return f"headrace {__version__} is ready: {model_id} at {address}  try: {request}"
