"""What gates share: counts of canary values that somebody waits for, and the thinning of unequal weights."""

from __future__ import annotations

from hashlib import blake2b

from evalpipe.rollout.plan import Gate, RolloutPlan

_NEVER = 1 << 62


class Marks:
    """Tells when a count has reached the next one that matters, in O(1)."""

    __slots__ = ("_bases", "_counts", "_least", "_next")

    def __init__(self, gate: Gate, plan: RolloutPlan) -> None:
        pairs = () if plan.shadow is None else (plan.shadow.min_pairs,)
        self._counts = sorted({*(step.min_canary for step in plan.steps), *pairs})
        self._least = gate.min_canary
        self._bases = [0]
        self._aim(0)

    def reached(self, n: int) -> bool:
        """Whether ``n`` has come to a count that matters, since it was asked last."""
        if n < self._next:
            return False
        self._aim(n)
        return True

    def ramp(self, n: int) -> None:
        """A step begins at ``n``."""
        self._bases = [*self._bases[-3:], n]
        self._aim(n)

    def _aim(self, n: int) -> None:
        wanted = [self._least, *(base + count for base in self._bases for count in self._counts)]
        self._next = min((count for count in wanted if count > n), default=_NEVER)

    def to_state(self) -> list[int]:
        """Where the steps began, and the next mark."""
        return [self._next, *self._bases]

    def load(self, state: list[int]) -> None:
        """The inverse of ``to_state``."""
        self._next, self._bases = state[0], list(state[1:])


def kept(name: object, share: float) -> bool:
    """Whether a record that was sampled more densely than others stays, with this probability; the same in a replay.

    It makes records of unequal weights a plain sample, and depends on nothing but the record's name.
    """
    if share >= 1.0 - 1e-9:
        return True
    digest = blake2b(str(name).encode("utf-8", "surrogatepass"), digest_size=8, person=b"evalpipe-weights").digest()
    return int.from_bytes(digest, "big") < share * 2.0**64
