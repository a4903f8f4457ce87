"""Thinning: which share of the work to judge, so that the day's money lasts the day and estimates stay unbiased.

A work is kept if its hash lies below p, whatever its record says; its score then weighs 1/p more. Since p follows from
money and traffic only, never from the work itself, weighted sums stay unbiased (Horvitz and Thompson 1952), also while
p changes. Money that ran out would instead leave the end of each day unjudged, and no weight could mend that.
"""

from __future__ import annotations

import hashlib
from typing import Final

LESS_URGENT_SHARE: Final = 0.8
"""Of a cap: less urgent work may use so much of it, the rest is kept for urgent work."""
LEAST: Final = 0.01
"""No smaller share is kept: a score would weigh more than a hundred others."""
MOST_FALL: Final = 2.0
"""The share falls at most by this factor from one update to the next. It rises at once: nothing is short any more."""
DAY_S: Final = 86_400.0
AHEAD: Final = 0.1
"""Of a cap: a burst may use so much more, on an empty morning, than a day of even spending would have used by then."""
BURST_S: Final = 1800.0
"""A burst may use what is there for it within this time: at half the time, half of it."""


def decide(unit: str, p: float) -> bool:
    """Whether ``unit`` is kept at probability ``p``; the same in every process, and what is kept at a smaller p is too.

    The hash is salted, so that this choice is independent of the hook's and the scorecard's sampling.
    """
    digest = hashlib.blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8, person=b"evalpipe-money").digest()
    return int.from_bytes(digest, "big") < p * 2.0**64


def keep_probability(
    *,
    cap: float,
    spent: float,
    reserved: float,
    left_s: float,
    need: float,
    urgent_need: float,
    before: float = 1.0,
) -> float:
    """The share of less urgent work to keep until the next update, from ``LEAST`` to 1.

    What less urgent work may still use is spread evenly over the rest of the day: below that rate everything is kept,
    above it the share that fits. A burst may use more for a while: what an even day would have used by now and this one
    has not, and ``AHEAD``, which dwindles as the day goes. So the rest of a day always keeps at least 7/8 of what an
    even day would have for it. To be called about once a minute, so that errors of the rates mend themselves.

    Args:
        cap: US dollars for the day.
        spent: of it, by all work.
        reserved: of it, for calls under way.
        left_s: seconds until the day ends.
        need: US dollars a second that all less urgent work would cost now, thinned work included.
        urgent_need: US dollars a second that urgent work costs now.
        before: the share in force.
    """
    left_s = max(left_s, 1.0)
    left, rest = LESS_URGENT_SHARE * cap - spent - reserved, min(1.0, left_s / DAY_S)
    for_bursts = max(0.0, left - (LESS_URGENT_SHARE - AHEAD) * cap * rest)
    affordable = left / left_s + for_bursts / BURST_S - urgent_need
    fits = affordable / need if need > 0.0 else 1.0
    return min(max(fits, before / MOST_FALL, LEAST), 1.0)
