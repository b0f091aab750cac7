"""``headrace tune-gemm``: choose a model's GEMM kernels before its first start."""

from __future__ import annotations

import click


@click.command("tune-gemm")
@click.argument("model")
@click.option(
    "--dtype",
    type=click.Choice(("auto", "bfloat16", "float16")),
    default="auto",
    help="Type that weights and activations are computed in. [bfloat16]",
)
def command(model: str, dtype: str) -> int:
    """Measure the ways to compute each linear of MODEL on this device, and keep the choices.

    MODEL is a directory, GGUF file, hub id or built-in shape. A file that holds already is only
    shown; one measured on something else is measured again.
    """
    from headrace.checkpoint.resolve import resolve
    from headrace.checkpoint.shapes import find_shape
    from headrace.engine.tune_gemm import tune_gemm

    results = tune_gemm(find_shape(model) or resolve(model), dtype)
    from rich.console import Console
    from rich.table import Table

    table = Table("weight", "tokens", "choice", "us", "default us", "gain", box=None)
    for tuned in results:
        table.add_row(
            f"{tuned.rows} x {tuned.columns}",
            str(tuned.tokens),
            tuned.choice,
            f"{tuned.microseconds:.1f}",
            f"{tuned.library_microseconds:.1f}",
            f"{tuned.gain:.1%}",
        )
    Console(highlight=False).print(table)
    return 0
