"""Causal attention needs no mask where padding comes last in its row: is that so?"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import torch

from headrace.link.errors import InvalidRequest


class PaddingCheck:
    """Refuses attention masks that are more than padding at the end of rows.

    On a GPU only the first mask is waited for; each later one is looked at when the next comes, so
    that the host may run ahead of the device.
    """

    def __init__(self) -> None:
        self._first = True
        self._verdict: torch.Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    @staticmethod
    def _refuse() -> None:
        raise InvalidRequest("attention_mask", "tokens after padding", "padded at the end of rows")

    def check(self, mask: torch.Tensor) -> None:
        """Look at a mask [rows, S] of ones and zeros.

        Raises:
            InvalidRequest: It is no such mask, or hides tokens that are followed by others.
        """
        if mask.dim() != 2:
            raise InvalidRequest("attention_mask", tuple(mask.shape), "of the shape [rows, tokens]")
        if self._copied is not None and self._verdict is not None:
            self._copied.synchronize()
            if bool(self._verdict):
                self._refuse()
        wrong = (mask[:, 1:].bool() & ~mask[:, :-1].bool()).any()
        if self._first or mask.device.type != "cuda":
            self._first = False
            if bool(wrong):
                self._refuse()
            return
        if self._verdict is None:
            self._verdict = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._copied = torch.cuda.Event()
        self._verdict.copy_(wrong, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
