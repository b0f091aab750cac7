"""TGI's own routes: shapes, parameters, headers."""

from __future__ import annotations

import json

import httpx
import pytest
from transport_text import TEXT


def test_generate(http: httpx.Client) -> None:
    reply = http.post("/generate", json={"inputs": "Hi"})
    assert reply.status_code == 200, reply.text
    assert reply.json() == {"generated_text": TEXT}
