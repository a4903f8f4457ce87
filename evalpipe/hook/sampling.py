"""Which calls are captured: by a hash of the trace id, so that every process gives a trace the same answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from zlib import crc32

from evalpipe.errors import ConfigError

DEFAULT_RATE: Final = 0.05
"""Share of traces that is captured where nothing else is said."""
SPAN: Final = 1 << 32
"""Positions are integers in [0, SPAN)."""

# Knuth's multiplicative hash spreads what CRC, which is linear, leaves regular in counted-up ids.
_MIX: Final = 2654435761


def position(trace_id: str) -> int:
    """Where the trace lies in [0, 2**32): it is captured at rate r if ``position < r * 2**32``.

    The positions of a 1 % sample lie inside those of a 5 % sample. In any language: CRC-32 of the id's UTF-8 bytes,
    times 2654435761, modulo 2**32.
    """
    return crc32(trace_id.encode("utf-8", "surrogatepass")) * _MIX & 0xFFFFFFFF


class Sampler:
    """The rate of each variant, as thresholds for ``position``."""

    __slots__ = ("_default", "_thresholds")

    def __init__(self, rate: float | Mapping[str, float]) -> None:
        """A sampler with one rate for all, or one for each variant; variants not named get the default rate.

        Raises:
            ConfigError: a rate is no number in [0, 1].
        """
        rates = dict(rate) if isinstance(rate, Mapping) else {}
        self._thresholds = {str(variant): _threshold(value, f" of {variant!r}") for variant, value in rates.items()}
        self._default = _threshold(DEFAULT_RATE if isinstance(rate, Mapping) else rate, "")

    def decide(self, variant: str, trace_id: str) -> tuple[bool, float]:
        """Whether the trace is captured under this variant, and the probability of that."""
        threshold = self._thresholds.get(variant, self._default)
        # As position() does; written out because this is most of what a call that is not sampled costs.
        return crc32(trace_id.encode("utf-8", "surrogatepass")) * _MIX & 0xFFFFFFFF < threshold, threshold / SPAN


def _threshold(rate: object, of: str) -> int:
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0.0 <= rate <= 1.0:
        raise ConfigError(
            f"the sample rate{of} must be a number from 0 to 1, not {rate!r}: "
            "give sample_rate=0.02, or EVALPIPE_SAMPLE_RATE=0.02, or a rate for each variant"
        )
    return round(rate * SPAN)
