"""Records in their order and the answers to their flags: what waits, what was confirmed, what got no answer."""

from __future__ import annotations

from typing import Any, Final, Literal

from evalpipe.stats.matching import Arm

UNANSWERED_GAIN: Final = 0.2
"""Gain of the moving average of flags without an answer: the last five or so count."""
MOST_WAITING: Final = 4_096
"""Records that may wait for an answer to a flag, and answers for their flag; the oldest flag is then without one."""

Answer = Literal["clean", "waits", "confirmed", "dismissed", "unanswered"]
Released = list[tuple[Arm, bool]]
"""Records that may enter the rate of confirmed flags, in their order: arm, and whether they are one."""


class FlagCounts:
    """What became of one arm's records: each flag is confirmed, dismissed, unanswered, or waits."""

    __slots__ = ("confirmed", "dismissed", "flags", "records", "unanswered")

    def __init__(self) -> None:
        self.records = self.flags = self.confirmed = self.dismissed = self.unanswered = 0

    @property
    def waiting(self) -> int:
        """Flags without an answer yet."""
        return self.flags - self.confirmed - self.dismissed - self.unanswered

    def to_state(self) -> dict[str, int]:
        """By name."""
        return {name: getattr(self, name) for name in self.__slots__}

    def load(self, state: dict[str, int]) -> None:
        """The inverse of ``to_state``."""
        for name in self.__slots__:
            setattr(self, name, state[name])


class FlagLine:
    """Two criteria whose evidence comes in any interleaving, each in the order of its seq.

    Attributes:
        counts: by arm.
        unanswered: moving average of flags that got no answer.
    """

    __slots__ = ("_early", "_line", "_reached", "counts", "unanswered")

    def __init__(self) -> None:
        self.counts: dict[Arm, FlagCounts] = {"baseline": FlagCounts(), "canary": FlagCounts()}
        self.unanswered = 0.0
        self._line: dict[int, tuple[Arm, Answer, bool]] = {}
        self._early: dict[int, Answer] = {}
        self._reached = -1

    def reach(self, seq: int) -> Answer | None:
        """The flags' criterion has come to ``seq``; an answer that is there already, if any."""
        self._reached = seq
        answer = self._early.pop(seq, None)
        while self._early and (oldest := next(iter(self._early))) < seq:
            del self._early[oldest]
        return answer

    def count(self, arm: Arm, *, flagged: bool) -> None:
        """Count a record."""
        self.counts[arm].records += 1
        self.counts[arm].flags += flagged

    def wait(self, seq: int, arm: Arm, answer: Answer | None, *, flagged: bool, enters: bool) -> Released:
        """A record takes its place; ``enters``: it is to enter the rate. Who may enter now."""
        if not self._line and not flagged:
            return [(arm, False)] if enters else []
        self._line[seq] = (arm, "waits" if flagged else "clean", enters)
        if flagged and answer is not None:
            self._close(seq, answer)
        return self._advance()

    def answer(self, seq: int, answer: Answer) -> Released:
        """The second judge has answered; earlier flags that still wait get no answer any more. Who may enter now."""
        for earlier in [at for at, (_, state, _) in self._line.items() if at < seq and state == "waits"]:
            self._close(earlier, "unanswered")
        if seq in self._line:
            if self._line[seq][1] == "waits":
                self._close(seq, answer)
        elif seq > self._reached:
            self._early[seq] = answer
            if len(self._early) > MOST_WAITING:
                del self._early[next(iter(self._early))]
        return self._advance()

    def renew(self) -> None:
        """Rates begin anew: who waits enters no more, but its flag may still be confirmed."""
        self._line = {seq: (arm, answer, False) for seq, (arm, answer, _) in self._line.items()}

    def _close(self, seq: int, answer: Answer) -> None:
        arm, _, enters = self._line[seq]
        self._line[seq] = (arm, answer, enters)
        counts = self.counts[arm]
        setattr(counts, answer, getattr(counts, answer) + 1)
        self.unanswered += UNANSWERED_GAIN * ((answer == "unanswered") - self.unanswered)

    def _advance(self) -> Released:
        """Those at the head of the line, up to one that waits."""
        line, released = self._line, []
        while line:
            seq = next(iter(line))
            if line[seq][1] == "waits":
                if len(line) <= MOST_WAITING:
                    break
                self._close(seq, "unanswered")
            arm, answer, enters = line.pop(seq)
            if enters:
                released.append((arm, answer == "confirmed"))
        return released

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        return {
            "counts": {arm: counts.to_state() for arm, counts in self.counts.items()},
            "line": [[seq, *entry] for seq, entry in self._line.items()],
            "early": [[seq, answer] for seq, answer in self._early.items()],
            "reached": self._reached,
            "unanswered": self.unanswered,
        }

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of ``to_state``."""
        for arm, counts in self.counts.items():
            counts.load(state["counts"][arm])
        self._line = {seq: (arm, answer, enters) for seq, arm, answer, enters in state["line"]}
        self._early = dict(state["early"])
        self._reached, self.unanswered = state["reached"], state["unanswered"]
