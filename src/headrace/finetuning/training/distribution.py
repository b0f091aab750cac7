"""What Accelerate, FSDP2 and DeepSpeed are told for each placement."""

from __future__ import annotations

from typing import Any

from accelerate import DistributedType, PartialState


def distribution_arguments(placement: str) -> dict[str, Any]:
    """Arguments of Transformers' ``TrainingArguments`` for a placement.

    Args:
        placement: ``single``, ``ddp``, ``fsdp2`` or ``zero3``; decided, not ``auto``.
    """
    if placement == "fsdp2":
        return {
            "fsdp": True,
            "fsdp_config": {
                "version": 2,
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "reshard_after_forward": True,
                "state_dict_type": "FULL_STATE_DICT",
                "cpu_ram_efficient_loading": False,
            },
        }
    if placement == "zero3":
        return {"deepspeed": _zero3()}
    return {}


def join_deepspeed() -> None:
    """Let DeepSpeed's communication use the process group that Accelerate made.

    On GPUs Accelerate has done so; on processors DeepSpeed would count one process only.
    """
    from deepspeed import comm, ops

    if not comm.is_initialized():
        # Shared-memory collectives would be compiled first, for half a minute; gloo does.
        ops.__compatible_ops__["deepspeed_shm_comm"] = False
        comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)


def admit_fsdp_on_processors() -> None:
    """Let Accelerate shard on gloo too.

    ``AcceleratorState`` looks at FSDP's settings only for kinds of accelerators, though torch's
    ``fully_shard`` works on processors; the kind is replaced by FSDP as soon as it has looked.
    """
    state = PartialState._shared_state
    if state.get("distributed_type") == DistributedType.MULTI_CPU:
        state["distributed_type"] = DistributedType.MULTI_GPU


def _zero3() -> dict[str, Any]:
    return {
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "bf16": {"enabled": "auto"},
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
    }
