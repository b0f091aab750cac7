"""Temperature, top-k, top-p and typical-p, and the draw, batched over rows of one kind.

The order is that of Transformers' and TGI's warpers: temperature, top-k, top-p, typical-p.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_CANDIDATES = 1024
"""Most likely tokens looked at first where top-k or top-p cuts; sorting a vocabulary is slow."""


@dataclass(frozen=True, slots=True)
class FilterParameters:
    """One value a row; neutral values mean absent.

    Attributes:
        temperature: [R] float32 > 0.
        top_k: [R] int64, at least the vocabulary's size where absent.
        top_p: [R] float32, 1 where absent.
        typical_p: [R] float32, 1 where absent.
        uniform: [R] float32 in [0, 1).
        any_typical: Whether a row has a typical-p: known on the host, which must not wait for the
            device to ask it.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    typical_p: torch.Tensor
    uniform: torch.Tensor
    any_typical: bool

    def rows(self, selected: torch.Tensor) -> FilterParameters:
        """Those of the selected rows."""
        return FilterParameters(
            self.temperature[selected],
            self.top_k[selected],
            self.top_p[selected],
            self.typical_p[selected],
            self.uniform[selected],
            self.any_typical,
        )


def draw_from_all(logits: torch.Tensor, parameters: FilterParameters) -> torch.Tensor:
    """Token ids [R] drawn from logits [R, vocab] under temperature and typical-p alone."""
    scaled = logits / parameters.temperature[:, None]
    if parameters.any_typical:
        scaled = _keep_typical(scaled, parameters.typical_p)
    return _draw(scaled, parameters.uniform)


def draw_from_likeliest(
    logits: torch.Tensor, parameters: FilterParameters, largest_top_k: int
) -> torch.Tensor:
    """Token ids [R] drawn from logits [R, vocab] of rows that have a top-k or top-p each.

    Args:
        largest_top_k: Largest top-k of the rows that have one.
    """
    vocab_size = logits.shape[-1]
    # A few more than the largest top-k, since ties with the last are kept. Sorting everything is
    # cheap on a GPU, where to ask whether a shorter list suffices would stop the host.
    count = max(_CANDIDATES, 2 * largest_top_k) if logits.device.type == "cpu" else vocab_size
    count = min(count, vocab_size)
    scaled = logits / parameters.temperature[:, None]
    drawn, sufficient = _draw_from_top(scaled, parameters, count)
    if count < vocab_size and not bool(sufficient.all()):
        flat = ~sufficient
        drawn[flat] = _draw_from_top(scaled[flat], parameters.rows(flat), vocab_size)[0]
    return drawn


def _draw_from_top(
    scaled: torch.Tensor, parameters: FilterParameters, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from the ``count`` most likely tokens; and whether they hold all that is to be kept."""
    values, ids = scaled.topk(count, dim=-1)
    vocab_size = scaled.shape[-1]
    has_top_k = parameters.top_k < vocab_size
    last = (parameters.top_k.clamp(max=count) - 1)[:, None]
    below = (values < values.gather(-1, last)) & has_top_k[:, None]
    kept = values.masked_fill(below, float("-inf"))
    everything = torch.where(has_top_k, kept.logsumexp(-1), scaled.logsumexp(-1))
    mass = (kept - everything[:, None]).exp().cumsum(-1)
    sufficient = has_top_k | (mass[:, -1] >= parameters.top_p) | (count == vocab_size)
    outside = mass[:, :-1] >= parameters.top_p[:, None]
    has_top_p = (parameters.top_p < 1)[:, None]
    kept[:, 1:].masked_fill_(outside & has_top_p, float("-inf"))
    if parameters.any_typical:
        kept = _keep_typical(kept, parameters.typical_p)
    # In order of token id, so that a draw does not depend on how many candidates were taken.
    ids, order = ids.sort(dim=-1)
    chosen = _draw(kept.gather(-1, order), parameters.uniform)
    return ids.gather(-1, chosen[:, None])[:, 0], sufficient


def _keep_typical(scaled: torch.Tensor, typical_p: torch.Tensor) -> torch.Tensor:
    """Locally typical sampling (arXiv:2202.00666): nearest to the expected information first."""
    logprobs = scaled.log_softmax(-1)
    probabilities = logprobs.exp()
    entropy = -(probabilities * logprobs).nansum(-1, keepdim=True)
    order = (logprobs + entropy).abs().argsort(dim=-1, stable=True)
    mass = probabilities.gather(-1, order).cumsum(-1)
    outside = torch.zeros_like(order, dtype=torch.bool)
    outside[:, 1:] = (mass[:, :-1] >= typical_p[:, None]) & (typical_p < 1)[:, None]
    return scaled.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), float("-inf"))


def _draw(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Index [R] at which the cumulative probability first exceeds ``uniform``."""
    cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    target = uniform.double()[:, None] * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, target, right=True)
    return found[:, 0].clamp(max=logits.shape[-1] - 1)
