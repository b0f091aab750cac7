"""All that the doctor tells, section by section; one that breaks says so and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

Pairs = list[tuple[str, str]]


def sections(*, measure: bool) -> Iterator[tuple[str, Pairs]]:
    """Title and content of each section but the backends, in order.

    Args:
        measure: Also measure how fast the machine is.
    """
    for title, describe in _describers(measure).items():
        yield title, _guarded(describe)


def _describers(measure: bool) -> dict[str, Callable[[], Pairs]]:
    from headrace.cli.diagnosis.drivers import describe_drivers
    from headrace.cli.diagnosis.environment import describe_environment
    from headrace.cli.diagnosis.machine import describe_machine
    from headrace.cli.diagnosis.native_extension import describe_native_extension
    from headrace.cli.diagnosis.rates import find_rates
    from headrace.cli.diagnosis.versions import describe_optional, describe_versions

    describers: dict[str, Callable[[], Pairs]] = {
        "Machine": describe_machine,
        "Versions": describe_versions,
        "Optional libraries": describe_optional,
        "Environment": describe_environment,
        "GPUs and drivers": describe_drivers,
        "Native kernels": describe_native_extension,
    }
    if measure:
        describers["Measured"] = find_rates
    return describers


def _guarded(describe: Callable[[], Pairs]) -> Pairs:
    try:
        return describe()
    except Exception as error:  # a diagnosis reports whatever breaks
        return [("failed", f"{type(error).__name__}: {error}")]
