"""TRL's SFTTrainer with atomic checkpoints and without its per-step synchronisations."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from trl.trainer.sft_trainer import SFTTrainer

from headrace.finetuning.base_precision.base_weights import BaseWeights
from headrace.finetuning.training.checkpoint_store import CheckpointStore
from headrace.finetuning.training.collate import NUM_TOKENS
from headrace.finetuning.training.distribution import admit_fsdp_on_processors
from headrace.finetuning.training.evaluations import best_step
from headrace.finetuning.training.failures import not_finite, not_written
from headrace.finetuning.training.shard_loading import load_shards


class AdapterTrainer(SFTTrainer):
    """The training loop of a run.

    Args:
        store: Where checkpoints are kept.
        keep: How many of the newest.
        base_weights: Of a base that has none until it is sharded; else ``None``.
        chunked_head: Head and loss in pieces, through TRL's own: where weights are sharded, ours
            cannot reach the head.
        arguments: SFTTrainer's own.

    Attributes:
        tokens_seen: Tokens of this process's training batches so far, padding not counted.
    """

    def __init__(
        self,
        *,
        store: CheckpointStore,
        keep: int,
        base_weights: BaseWeights | None,
        chunked_head: bool,
        **arguments: Any,
    ) -> None:
        self._store = store
        self._keep = keep
        self._base_weights = base_weights
        self._chunked_head = chunked_head
        self._saving = False
        self.tokens_seen = 0
        super().__init__(**arguments)

    def create_accelerator_and_postprocess(self) -> None:
        """As Transformers does it, but FSDP2 also on processors, and not all of it in bfloat16."""
        if self.args.fsdp:
            admit_fsdp_on_processors()
        super().create_accelerator_and_postprocess()
        if self.args.fsdp and self.args.bf16:
            # Accelerate's own policy also rounds the loss and the sums of gradients.
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = policy

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """The first thing that is made for a sharded model, before a checkpoint is loaded into it.

        Its weights come first: torch replaces the adapters' parameters where it loads a state into
        a model with meta tensors, and the optimizer would keep the old ones.
        """
        if self._base_weights is not None:
            model: Any = self.model
            load_shards(model, self._base_weights)
            self._base_weights = None
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The model's own loss: SFTTrainer's reads its metrics from the device at every step."""
        tokens = inputs.pop(NUM_TOKENS)
        if model.training:
            self.tokens_seen += tokens
        inputs["use_cache"] = False
        if self._chunked_head:
            inputs["fused_lm_head"] = True
        return super(SFTTrainer, self).compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: it would walk through all parameters at every step."""
        return 0

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The adapter; Transformers would gather a base that FSDP2 shards whole on one host."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=True
        )
        model: Any = self.model
        state = get_model_state_dict(model, options=options)
        if self.args.should_save:
            self._save(output_dir, state_dict=state)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._store.unfinished if self._saving else self._store.path)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        step = self.state.global_step
        if self._store.of_step(step).is_dir():
            return
        self._refuse_what_is_not_finite(step)
        if self.args.should_save:
            self._store.begin()
        self.accelerator.wait_for_everyone()
        self._saving = True
        try:
            # Past SFTTrainer's own, which writes a model card into every checkpoint.
            super(SFTTrainer, self)._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._store.commit(step)
        except (OSError, RuntimeError, SafetensorError) as error:
            self._store.discard()
            raise not_written(error, step, self._store) from error
        finally:
            self._saving = False
        if self.args.should_save:
            best = best_step(self.state.log_history)
            self._store.prune(self._keep, () if best is None else (best,))
        self.accelerator.wait_for_everyone()

    def _refuse_what_is_not_finite(self, step: int) -> None:
        """A checkpoint with NaN in it must not take the place of a good one."""
        sound = self._tr_loss.isfinite().all()
        for parameter in self.model_wrapped.parameters():
            if parameter.requires_grad:
                sound &= _local(parameter).isfinite().all().to(sound.device)
        unsound = self.accelerator.reduce((~sound).int(), "sum")
        if unsound.item():
            raise not_finite("the loss or a weight of the adapter", step, self._store)


def _local(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The part of a parameter that this process holds."""
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    sharded = getattr(parameter, "ds_tensor", None)
    return parameter.detach() if sharded is None else sharded
