"""Each training kernel against its reference, as a script that prints one JSON line a case.

Run with TRITON_INTERPRET=1 on a CPU (tiny shapes, no bfloat16: the interpreter's bfloat16 dot is
wrong), or with a GPU (larger and odd shapes). The reference computes in float32 from the inputs as
rounded, its result rounded like the kernel's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import torch

from headrace.kernels.activation import backward_reference as activation_reference
from headrace.kernels.activation import triton_backward as activation
from headrace.kernels.cross_entropy import reference as loss_reference
from headrace.kernels.cross_entropy import triton as loss
from headrace.kernels.fp8_rows import reference as fp8_reference
from headrace.kernels.fp8_rows import triton as fp8
from headrace.kernels.lora import reference as lora_reference
from headrace.kernels.lora import triton as lora
from headrace.kernels.nf4 import reference as nf4_reference
from headrace.kernels.nf4 import triton as nf4
from headrace.kernels.norm import backward_reference as norm_reference
from headrace.kernels.norm import triton_backward as norm
from headrace.kernels.rotary import training_reference as rotary_reference
from headrace.kernels.rotary import triton_training as rotary

Tensor = torch.Tensor
Case = tuple[str, Callable[[], float]]


def relative_error(out: Tensor, expected: Tensor) -> float:
    out, expected = out.double(), expected.double()
    return float((out - expected).norm() / expected.norm().clamp_min(1e-30))


class TrainingComparisons:
    """The cases of one device, dtype and scale of shapes."""

    def __init__(self, device: torch.device, dtype: torch.dtype, large: bool) -> None:
        self.device, self.dtype, self.large = device, dtype, large

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device).to(self.dtype)

    def seeds(self, number: int) -> Tensor:
        return torch.randint(2**31 - 1, (number,), dtype=torch.int32, device=self.device)

    def norm_backward(self, rows: int, hidden: int, skip: bool) -> float:
        grad, x, weight = self.random(rows, hidden), self.random(rows, hidden), self.random(hidden)
        residual = self.random(rows, hidden) if skip else None
        mine = norm.rms_norm_backward(grad, x, weight, 1e-5, residual)
        return relative_error(
            mine, norm_reference.rms_norm_backward(grad, x, weight, 1e-5, residual)
        )

    def silu_mul_backward(self, rows: int, width: int) -> float:
        grad, gate_up = self.random(rows, width), self.random(rows, 2 * width)
        mine = activation.silu_mul_backward(grad, gate_up)
        return relative_error(mine, activation_reference.silu_mul_backward(grad, gate_up))

    def rotate(self, tokens: int, heads: int, head_dim: int, period: int) -> float:
        qkv, angle = self.random(tokens, heads + 3, head_dim), torch.rand(period, head_dim // 2)
        cosine, sine = angle.cos().to(self.device), angle.sin().to(self.device)
        expected = qkv.clone()
        rotary_reference.rotate(expected, cosine, sine, heads)
        rotary.rotate(qkv, cosine, sine, heads)
        return relative_error(qkv, expected)

    def unrotate(self, rows: int, length: int, heads: int, kv_heads: int, head_dim: int) -> float:
        grads = [
            self.random(rows, number, length, head_dim).transpose(1, 2)
            for number in (heads, kv_heads, kv_heads)
        ]
        angle = torch.rand(length, head_dim // 2)
        cosine, sine = angle.cos().to(self.device), angle.sin().to(self.device)
        mine = rotary.unrotate_packed(*grads, cosine, sine)
        return relative_error(mine, rotary_reference.unrotate_packed(*grads, cosine, sine))

    def lora_down(self, tokens: int, width: int, adapters: int, rank: int, p: float) -> float:
        x, down = self.random(tokens, width), self.random(adapters, rank, width)
        seeds = self.seeds(adapters)
        mine = lora.down_project(x, down, seeds, p)
        return relative_error(mine, lora_reference.down_project(x, down, seeds, p))

    def lora_gradient(self, tokens: int, width: int, adapters: int, rank: int, p: float) -> float:
        x, grad = self.random(tokens, width), self.random(tokens, adapters * rank)
        seeds = self.seeds(adapters)
        mine = lora.down_gradient(x, grad, seeds, p, rank)
        return relative_error(mine, lora_reference.down_gradient(x, grad, seeds, p, rank))

    def lora_input(self, tokens: int, width: int, adapters: int, rank: int, p: float) -> float:
        grad_x, grad = self.random(tokens, width), self.random(tokens, adapters * rank)
        down, seeds = self.random(adapters, rank, width), self.seeds(adapters)
        expected = grad_x.clone()
        lora_reference.add_input_gradient(expected, grad, down, seeds, p)
        lora.add_input_gradient(grad_x, grad, down, seeds, p)
        return relative_error(grad_x, expected)

    def cross_entropy(self, rows: int, vocab: int) -> float:
        logits = 4 * self.random(rows, vocab)
        labels = torch.randint(0, vocab, (rows,), device=self.device)
        labels[::3] = loss_reference.IGNORED
        labels[1] = vocab - 1
        expected = logits.clone()
        expected_losses = loss_reference.cross_entropy_in_place(expected, labels)
        losses = loss.cross_entropy_in_place(logits, labels)
        return max(relative_error(logits, expected), relative_error(losses, expected_losses))

    def fp8_rows(self, rows: int, width: int, factor: bool) -> float:
        x = self.random(rows, width)
        columns = torch.rand(width, device=self.device) + 0.5 if factor else None
        values, scales = fp8.quantize_rows(x, columns)
        expected, expected_scales = fp8_reference.quantize_rows(x, columns)
        mine, theirs = values.float(), expected.float()
        if not self.large:
            # The interpreter loses the carry of a mantissa that rounds up to a power of two.
            carried = torch.frexp(theirs).mantissa.abs() == 0.5
            mine = torch.where(carried, theirs, mine)
        # Where a scale differs in its last bit, single elements may round to the next step.
        return max(
            relative_error(scales, expected_scales),
            relative_error(mine, theirs) - (0.01 if self.large else 0.0),
        )

    def fp8_transpose(self, rows: int, width: int) -> float:
        source = torch.randint(0, 256, (rows, width), dtype=torch.uint8, device=self.device)
        return float((fp8.transpose_bytes(source) != source.t()).sum())

    def nf4(self, elements: int) -> float:
        weight = self.random(elements)
        packed, peaks = nf4_reference.quantize(weight)
        mine, expected = self.random(elements), self.random(elements)
        nf4.dequantize(packed, peaks, mine)
        nf4_reference.dequantize(packed, peaks, expected)
        # The format itself: a block's rounding error stays under half of the widest step.
        step = (expected.float() - weight.float()).abs().view(-1, 64).amax(1) / peaks
        return max(relative_error(mine, expected), float(step.max()) - 0.16)

    def cases(self) -> Iterator[Case]:
        big = self.large
        tokens, width, vocab = (1000, 4096, 128256) if big else (37, 200, 300)
        for skip in (False, True):
            yield f"norm_backward {skip}", lambda s=skip: self.norm_backward(tokens, width, s)
        inner = 14336 if big else 150
        yield "silu_mul_backward", lambda: self.silu_mul_backward(tokens, inner)
        yield "rotate rows", lambda: self.rotate(24, 6, 32, 12)
        yield "rotate positions", lambda: self.rotate(20, 5, 20, 20)
        yield "unrotate", lambda: self.unrotate(2, 9, 6, 2, 32)
        yield "unrotate odd", lambda: self.unrotate(1, 5, 3, 1, 20)
        for p in (0.0, 0.1):
            for adapters, rank in ((2, 8), (1, 4), (3, 24)):
                name = f"{adapters}x{rank} {p}"
                arguments = (tokens, width, adapters, rank, p)
                yield f"lora_down {name}", lambda a=arguments: self.lora_down(*a)
                yield f"lora_gradient {name}", lambda a=arguments: self.lora_gradient(*a)
                yield f"lora_input {name}", lambda a=arguments: self.lora_input(*a)
        yield "cross_entropy", lambda: self.cross_entropy(12 if big else 7, vocab)
        yield "cross_entropy long", lambda: self.cross_entropy(4, 128256 if big else 9000)
        yield "fp8_rows", lambda: self.fp8_rows(tokens, width, False)
        yield "fp8_rows factor", lambda: self.fp8_rows(tokens, width, True)
        yield "fp8_transpose", lambda: self.fp8_transpose(100 if not big else 1040, width)
        yield "nf4 small", lambda: self.nf4(64 * 3)
        yield "nf4", lambda: self.nf4(64 * (99 if not big else 100_003))


def main() -> None:
    """Every case once, on a GPU where there is one."""
    torch.manual_seed(0)
    large = torch.cuda.is_available()
    if not large:
        # Imported here: a GPU has no interpreter.
        from quick_interpreter import patch_once_a_launch

        patch_once_a_launch()
    device = torch.device("cuda" if large else "cpu")
    dtypes = (torch.bfloat16, torch.float16) if large else (torch.float16, torch.float32)
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        for case, compare in TrainingComparisons(device, dtype, large).cases():
            print(json.dumps({"case": f"{case} {name}", "error": compare()}), flush=True)


if __name__ == "__main__":
    main()
