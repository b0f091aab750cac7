"""How many bytes a matrix takes in each format in which weights are held."""

from __future__ import annotations

from math import ceil

import msgspec


class WeightFormat(msgspec.Struct, frozen=True, kw_only=True):
    """One way to hold the elements of a matrix [N, K].

    Attributes:
        name: As users name it.
        bits: Of one element.
        group: Elements of a row that share a scale; 0: the whole row; ``None``: no scales.
        group_bytes: Of what a group carries (scales, zero points), on average.
        meaning: In words, for the arithmetic that is shown.
    """

    name: str
    bits: int
    group: int | None = None
    group_bytes: float = 0.0
    meaning: str

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a matrix [rows, columns]; groups do not cross rows."""
        total = rows * columns * self.bits / 8
        if self.group is not None:
            groups = 1 if self.group == 0 else ceil(columns / self.group)
            total += rows * groups * self.group_bytes
        return ceil(total)


WEIGHT_FORMATS: dict[str, WeightFormat] = {
    format.name: format
    for format in (
        WeightFormat(name="bf16", bits=16, meaning="2 bytes an element"),
        WeightFormat(name="fp16", bits=16, meaning="2 bytes an element"),
        WeightFormat(name="fp32", bits=32, meaning="4 bytes an element"),
        WeightFormat(
            name="fp8",
            bits=8,
            group=0,
            group_bytes=4,
            meaning="1 byte an element, a float32 scale a row",
        ),
        WeightFormat(
            name="int8",
            bits=8,
            group=0,
            group_bytes=4,
            meaning="1 byte an element, a float32 scale a row",
        ),
        # QLoRA (arXiv:2305.14314), without its quantization of the scales.
        WeightFormat(
            name="nf4",
            bits=4,
            group=64,
            group_bytes=4,
            meaning="half a byte an element, a float32 scale for 64",
        ),
        WeightFormat(
            name="gptq",
            bits=4,
            group=128,
            group_bytes=2.5,
            meaning="half a byte an element, a float16 scale and a 4-bit zero for 128",
        ),
        WeightFormat(
            name="awq",
            bits=4,
            group=128,
            group_bytes=2.5,
            meaning="half a byte an element, a float16 scale and a 4-bit zero for 128",
        ),
        WeightFormat(
            name="q4_0",
            bits=4,
            group=32,
            group_bytes=2,
            meaning="half a byte an element, a float16 scale for 32",
        ),
        WeightFormat(
            name="q4_1",
            bits=4,
            group=32,
            group_bytes=4,
            meaning="half a byte an element, a float16 scale and minimum for 32",
        ),
        WeightFormat(
            name="q8_0",
            bits=8,
            group=32,
            group_bytes=2,
            meaning="1 byte an element, a float16 scale for 32",
        ),
    )
}
"""By name; what ``headrace fit --quantize`` takes."""
