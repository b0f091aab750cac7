"""Forwards of the model and of the causal language model over fused layers and the fused loss."""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from headrace.finetuning.fused.adapters import parameters_of
from headrace.finetuning.fused.attention import choose_attention
from headrace.finetuning.fused.decoder_layer import BatchContext, FusedDecoderLayer, LayerPlan
from headrace.finetuning.fused.documents import find_documents
from headrace.finetuning.fused.head_loss import head_loss
from headrace.finetuning.fused.norm_function import FusedRMSNorm
from headrace.finetuning.fused.operations import operations_for
from headrace.finetuning.fused.padding import PaddingCheck
from headrace.finetuning.fused.step_graph import StepGraphs
from headrace.kernels.cross_entropy.reference import IGNORED

Tensor = torch.Tensor


def fuse_layer(layer: nn.Module, plan: LayerPlan, index: int) -> None:
    """Let a decoder layer's forward take a ``BatchContext``; its hooks stay in force.

    Without one (generation with a cache) the layer computes as before.
    """

    plain = layer.forward

    def forward(hidden_states: Tensor, *args: Any, batch: BatchContext | None = None, **kw: Any):  # type: ignore[no-untyped-def]
        if batch is None:
            return plain(hidden_states, *args, **kw)
        return FusedDecoderLayer.apply(hidden_states, plan, batch, index, *plan.parameters())

    layer.forward = forward


class FusedModelForward:
    """The decoder's forward for training and evaluation.

    Generation with a cache takes Transformers' own forward, with each layer's own.
    """

    def __init__(self, model: Any, plans: list[LayerPlan]) -> None:
        self._model = model
        self._plain = model.forward
        self._plans = plans
        self._padding = PaddingCheck()
        self._seeds = max(sum(len(group.branches) for group in plan.groups) for plan in plans)

    def _batch(self, hidden: Tensor, position_ids: Tensor | None) -> BatchContext:
        model, shape = self._model, self._plans[0].shape
        rows, length, _ = hidden.shape
        documents = None if position_ids is None else find_documents(position_ids)
        if position_ids is None:
            position_ids = torch.arange(length, device=hidden.device)[None]
        like = torch.empty(0, dtype=torch.float32, device=hidden.device)
        cosine, sine = model.rotary_emb(like, position_ids=position_ids)
        half = shape.head_dim // 2
        return BatchContext(
            attention=choose_attention(
                (rows, length, shape.heads, shape.head_dim),
                shape.kv_heads,
                hidden.dtype,
                hidden.device,
                documents,
            ),
            cosine=cosine[..., :half].flatten(0, 1).contiguous(),
            sine=sine[..., :half].flatten(0, 1).contiguous(),
            seeds=torch.randint(
                2**31 - 1,
                (len(self._plans), max(1, self._seeds)),
                dtype=torch.int32,
                device=hidden.device,
            ),
            operations=operations_for(hidden.device),
            recompute=bool(model.training and model.gradient_checkpointing),
        )

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> Any:
        """Hidden states after the last norm, [rows, S, hidden]."""
        model = self._model
        if use_cache or past_key_values is not None:
            return self._plain(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **others,
            )
        if attention_mask is not None:
            self._padding.check(attention_mask)
        hidden = model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        batch = self._batch(hidden, position_ids)
        for layer in model.layers:
            # Not layer(...): Transformers may wrap a layer's call in its own checkpointing.
            hidden = nn.Module.__call__(layer, hidden, batch=batch)
        norm = model.norm
        hidden = FusedRMSNorm.apply(hidden, norm.weight, norm.variance_epsilon)
        return BaseModelOutputWithPast(last_hidden_state=hidden)


class FusedCausalForward:
    """The causal language model's forward: with labels, the loss without logits."""

    def __init__(self, causal: Any, plans: list[LayerPlan], graph_tokens: int) -> None:
        self._causal = causal
        self._plain = causal.forward
        self._plans = plans
        self._padding = PaddingCheck()
        self._graphs = StepGraphs(self._whole_rows_loss, graph_tokens)

    def _whole_rows_loss(self, ids: Tensor, labels: Tensor, num_items: Tensor | None) -> Tensor:
        hidden = self._causal.model(input_ids=ids, use_cache=False).last_hidden_state
        return head_loss(hidden, self._causal.lm_head.weight, labels, num_items)

    def _graphed_loss(self, ids: Tensor, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
        causal = self._causal
        branches = [
            branch
            for plan in self._plans
            for group in plan.groups
            for branch in group.active_branches()
        ]
        parameters = parameters_of(branches)
        state = (
            causal.model.training and causal.model.gradient_checkpointing,
            torch.are_deterministic_algorithms_enabled(),
            causal.lm_head.weight.data_ptr(),
            tuple((branch.dropout, branch.scaling) for branch in branches),
            tuple((tensor.data_ptr(), tensor.requires_grad) for tensor in parameters),
        )
        if not all(tensor.requires_grad for tensor in parameters):
            branches = []
        if num_items is not None:
            num_items = torch.as_tensor(num_items, device=ids.device).float()
        return self._graphs.loss(branches, state, ids, labels, num_items)

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **others: Any,
    ) -> Any:
        """``CausalLMOutputWithPast``; ``logits`` are ``None`` where ``labels`` are given.

        A label at position 0 of a packed document is the target of another document's last token:
        it does not count.
        """
        if labels is None:
            return self._plain(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                **others,
            )
        others["use_cache"] = False
        if self._plans and position_ids is None and input_ids is not None:
            if attention_mask is not None:
                self._padding.check(attention_mask)
            return CausalLMOutputWithPast(
                loss=self._graphed_loss(input_ids, labels, num_items_in_batch)
            )
        hidden = self._causal.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **others
        ).last_hidden_state
        if position_ids is not None:
            labels = labels.masked_fill(position_ids == 0, IGNORED)
        loss = head_loss(hidden, self._causal.lm_head.weight, labels, num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss)
