"""Families of metrics, whose names all begin with ``evalpipe_``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

Values = Iterable[tuple[Sequence[str], float]]


def one(name: str, text: str, value: float) -> GaugeMetricFamily:
    """A gauge without labels."""
    return gauge(name, text, [], [([], value)])


def gauge(name: str, text: str, labels: Sequence[str], values: Values) -> GaugeMetricFamily:
    """A gauge, by its labels' values."""
    family = GaugeMetricFamily(f"evalpipe_{name}", text, labels=labels)
    for of, value in values:
        family.add_metric(of, float(value))
    return family


def counter(name: str, text: str, labels: Sequence[str], values: Values) -> CounterMetricFamily:
    """A counter, by its labels' values; ``_total`` is added to its name."""
    family = CounterMetricFamily(f"evalpipe_{name}", text, labels=labels)
    for of, value in values:
        family.add_metric(of, float(value))
    return family
