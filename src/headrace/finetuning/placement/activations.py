"""What a step of LoRA training keeps for its backward pass, tensor by tensor, from the shapes.

What a Transformers decoder layer with PEFT adapters saves (bytes a token in bf16, H hidden, I
intermediate, Q and K widths of all query and all key heads, r rank; counted with
``torch.autograd.graph.saved_tensors_hooks``). A frozen projection saves nothing but its weight:
only the gradient of its input is wanted.

* Each RMSNorm: its input in float32 (4 H, twice read, kept once) and the inverse root (4). Fused:
  the input as it came (2 H).
* Each adapter with dropout: the mask (H on a GPU, as wide as the element on a CPU), the dropped
  input (2 H, or 4 H where adapters compute in float32) and ``x @ A`` (2 r or 4 r). Without
  dropout the input is kept once for all adapters that read it, unless each casts it for itself.
  Fused: the input once (2 H), ``x @ A`` of each (2 r), no mask.
* Head norms (Qwen3): like RMSNorm over Q and K.
* Rotary positions: the tables of cosines and sines, shared by all layers. Fused: each layer's
  halves of them in float32.
* Attention (flash): Q, K, V and the output (4 Q + 4 K), the log-sum-exp of each head (4).
* The gated feed-forward: gate, ``silu(gate)`` and up (6 I). Fused: gate and up (4 I).
* Final norm; then head and loss: the log-softmax in float32 (4 V) and, at the peak, the gradient
  of the loss by it and by the logits (4 V each). Fused: the hidden states, their gradient (2 H
  each) and the logits of one piece of rows.

Where whole layers are fused, ``fused_layer.py`` has the list.

The embedding's output needs no gradient: the first layer saves neither its input norm nor masks,
unless gradient checkpointing makes it.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.checkpoint.config import ModelConfig
from headrace.finetuning.fused.pieces import loss_piece_elements
from headrace.finetuning.placement import fused_layer
from headrace.finetuning.placement.parameter_counts import adapted_projections
from headrace.finetuning.placement.workload import TrainingWorkload

_READERS = (
    ("attention input", ("q_proj", "k_proj", "v_proj")),
    ("attention output", ("o_proj",)),
    ("feed-forward input", ("gate_proj", "up_proj")),
    ("feed-forward product", ("down_proj",)),
)
"""Which projections read the same tensor."""

_FP32 = 4

_LOSS_COPIES = 3
"""float32 copies of a piece of logits that the fused head's reference holds on a CPU."""


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """What one operation keeps of each token.

    Attributes:
        name: What it is.
        bytes: Of one token.
        needs_input_gradient: Not kept where the layer's input needs no gradient.
    """

    name: str
    bytes: int
    needs_input_gradient: bool = False


def layer_tensors(config: ModelConfig, workload: TrainingWorkload) -> tuple[SavedTensor, ...]:
    """What one decoder layer keeps; see the list above."""
    element = workload.element_bytes
    kept = [_norm("input norm", config.hidden_size, workload, first=True)]
    kept += _adapters(config, workload, *_READERS[0])
    if workload.fused.rotary:
        kept.append(SavedTensor("rotary tables", _FP32 * config.head_dim))
    if config.qk_norm:
        kept += [
            _norm("query norm", config.q_size, workload, rows=config.num_heads),
            _norm("key norm", config.kv_size, workload, rows=config.num_kv_heads),
        ]
    kept += [
        SavedTensor("queries", element * config.q_size),
        SavedTensor("keys", element * config.kv_size),
        SavedTensor("values", element * config.kv_size),
        SavedTensor("attention output", element * config.q_size),
        SavedTensor("log-sum-exp of attention", _FP32 * config.num_heads),
    ]
    kept += _adapters(config, workload, *_READERS[1])
    kept.append(_norm("post-attention norm", config.hidden_size, workload))
    kept += _adapters(config, workload, *_READERS[2])
    kept.append(SavedTensor("gate", element * config.intermediate_size))
    if not workload.fused.swiglu:
        kept.append(SavedTensor("silu(gate)", element * config.intermediate_size))
    kept.append(SavedTensor("up", element * config.intermediate_size))
    kept += _adapters(config, workload, *_READERS[3])
    return tuple(kept)


def layer_bytes(config: ModelConfig, workload: TrainingWorkload, *, first: bool = False) -> int:
    """Bytes a token of one layer, or of the ``first``, whose input needs no gradient."""
    return sum(
        tensor.bytes
        for tensor in layer_tensors(config, workload)
        if not (first and tensor.needs_input_gradient)
    )


def saved_bytes(config: ModelConfig, workload: TrainingWorkload) -> int:
    """Bytes of all that is kept when the loss is about to be computed, for all tokens together.

    The rotary tables are those of one row: all rows have the same positions.
    """
    tables = 2 * workload.element_bytes * config.head_dim * workload.row_tokens
    a_token = _norm("final norm", config.hidden_size, workload).bytes
    if workload.fused.decoder_layer:
        a_token += config.num_layers * fused_layer.kept_bytes(config, workload)
    elif workload.gradient_checkpointing:
        a_token += config.num_layers * workload.element_bytes * config.hidden_size
    else:
        a_token += layer_bytes(config, workload, first=True)
        a_token += (config.num_layers - 1) * layer_bytes(config, workload)
    return a_token * workload.tokens + tables


def loss_bytes(config: ModelConfig, workload: TrainingWorkload) -> int:
    """Bytes of all that head and loss hold at their peak, for all tokens together."""
    if workload.fused.cross_entropy:
        most = loss_piece_elements(on_gpu=workload.on_gpu) // config.vocab_size
        piece = config.vocab_size * min(workload.tokens, max(1, most))
        copies = 0 if workload.on_gpu else _FP32 * _LOSS_COPIES
        states = workload.element_bytes * 2 * config.hidden_size * workload.tokens
        return states + piece * (workload.element_bytes + copies)
    return 3 * _FP32 * config.vocab_size * workload.tokens


def backward_bytes(config: ModelConfig, workload: TrainingWorkload) -> int:
    """Bytes a token of what exists at once, beside what was kept, while one layer runs backward.

    The gradients of the product, of ``silu(gate)`` and of up (6 I; fused: of the product, and of
    gate and up together), or the float32 intermediates of an unfused norm, beside the gradients of
    the residual stream and of the branch; with gradient checkpointing also what a layer keeps.
    """
    if workload.fused.decoder_layer:
        return fused_layer.backward_bytes(config, workload)
    inner, hidden, element = config.intermediate_size, config.hidden_size, workload.element_bytes
    feed_forward = 3 * element * inner
    norm = (element if workload.fused.rms_norm else 4 * _FP32) * hidden
    again = layer_bytes(config, workload) if workload.gradient_checkpointing else 0
    return max(feed_forward, norm) + 2 * element * hidden + again


def _norm(
    name: str, width: int, workload: TrainingWorkload, *, rows: int = 1, first: bool = False
) -> SavedTensor:
    if workload.fused.rms_norm or workload.fused.decoder_layer:
        return SavedTensor(name, workload.element_bytes * width, needs_input_gradient=first)
    return SavedTensor(name, _FP32 * (width + rows), needs_input_gradient=first)


def _adapters(
    config: ModelConfig, workload: TrainingWorkload, group: str, names: tuple[str, ...]
) -> list[SavedTensor]:
    """What the adapters that read one tensor keep of it."""
    shapes = adapted_projections(config, workload.target_modules)
    adapted = [name for name in names if name in shapes]
    if not adapted:
        return []
    width = shapes[adapted[0]][1]
    fused = workload.fused.lora_linear
    casts = workload.adapter_dtype == "fp32" and workload.element_bytes < _FP32 and not fused
    element = _FP32 if casts and not workload.autocast else workload.element_bytes
    kept = [SavedTensor(f"{name} x @ A", element * workload.rank) for name in adapted]
    if workload.dropout > 0 and not fused:
        mask = (1 if workload.on_gpu else _FP32 if casts else element) * width
        masked = group == "attention input"
        for name in adapted:
            kept.append(SavedTensor(f"{name} dropout mask", mask, needs_input_gradient=masked))
            kept.append(SavedTensor(f"{name} dropped input", element * width))
    elif casts:
        # Each adapter casts the input for itself.
        kept += [SavedTensor(f"{name} cast input", element * width) for name in adapted]
    elif group != "attention output":
        # Attention keeps its own output already.
        kept.append(SavedTensor(group, element * width))
    return kept
