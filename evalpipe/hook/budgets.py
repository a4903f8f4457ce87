"""Budgets: spent before the call from leases that a background thread fetches, so that no call waits for Redis.

Redis has one counter for each account (budget, key, window): what processes have leased of it. A process spends from
what it leased; before a call it reserves an estimate, after it the estimate becomes what was really spent. The thread
leases more when less than half a lease is left, gives back what idle accounts have left, and debits what was spent
without a lease.

A process need not wait for a lease: until Redis says that an account is used up, calls may run ahead of what is leased,
by an eighth of what Redis had left when this process last asked (of the limit, before it asked), by one lease if that
is more, or by one call if its estimate is more still. That too is debited at once.

**Overshoot.** Of an account whose limit is enforced on all its calls, at any time,

    spent <= limit + sum over processes of max(lease, left / 8, estimate of one call)
                   + what calls took beyond their estimates

where ``lease`` is in units and ``left`` is what a process had been told was left when it last ran ahead: at the most
the limit, and the less the emptier the budget is, until only a lease remains. For leases are only granted up to the
limit, whoever hears that something is left hears that nothing is exceeded yet, and a process that was told that nothing
is left runs no further ahead until Redis had something to give again. The first calls of a process have no estimate yet
(it is one unit), nor have those whose usage nobody knows: all that they take counts as beyond it. Calls that are not
enforced are never refused, so what they spend comes on top. A process keeps at most 10,000 accounts; one that is
forgotten for that may run ahead once more.

**Redis unreachable** (or it lost its memory: then everybody debits anew what it leased). Up to ``max_staleness_s`` what
is known holds: an account that is used up stays refused, leases are spent to their end, and one more; then calls pass
with ``fail: open`` and are refused with ``fail: closed``. After ``max_staleness_s`` all pass, or all are refused.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from evalpipe.hook.connection import Connection
from evalpipe.hook.document import MICRO, Budget
from evalpipe.hook.leases import BATCH, Account, Ask, Counters

if TYPE_CHECKING:
    from evalpipe.hook.call import Call

MAX_ACCOUNTS: Final = 10_000
"""Accounts in a process at the most; beyond, those not used for longest are closed."""
IDLE_S: Final = 10.0
"""After this time without a call an account gives its lease back."""
ASK_AGAIN_S: Final = 1.0
"""An account that is used up, and that calls still ask for, is looked at again so often."""
AHEAD: Final = 8
"""One part in so many of what is left may be spent before it is leased: a burst of calls need not wait for Redis."""
_RECENT: Final = 32
"""The estimate is an average over about so many calls."""


class Spent(NamedTuple):
    """What a call took, None where it is unknown; then the guesses say at least how much, if it took anything."""

    tokens: int | None
    micro_usd: int | None
    guessed_tokens: int | None = None
    guessed_micro_usd: int | None = None


class Budgets:
    """The accounts of one process. Its lock is held for a few lines of arithmetic and never during I/O.

    Attributes:
        budgets: those of the control document.
    """

    def __init__(self, service: str, wake: Callable[[], None]) -> None:
        self.budgets: tuple[Budget, ...] = ()
        self._counters = Counters(service)
        self._wake = wake
        # Reentrant: a signal handler or finalizer of the application may make a call while this thread is in here.
        self._lock = threading.RLock()
        self._accounts: OrderedDict[tuple[str, str, int], Account] = OrderedDict()
        self._needy: dict[Account, None] = {}
        self._strays: deque[Ask] = deque(maxlen=MAX_ACCOUNTS)
        self._means: dict[tuple[str, str], tuple[float, int]] = {}
        self._scanned_at = float("-inf")

    def __len__(self) -> int:
        """Accounts that are open."""
        return len(self._accounts)

    def adopt(self, budgets: tuple[Budget, ...]) -> None:
        """Go on with the budgets of a new control document; an account goes on if it still counts the same."""
        by_name = {budget.name: budget for budget in budgets}
        with self._lock:
            self.budgets = budgets
            for place, account in list(self._accounts.items()):
                old, new = account.budget, by_name.get(account.budget.name)
                if new is None or (new.per, new.unit, new.window) != (old.per, old.unit, old.window):
                    self._close(place)
                    continue
                account.budget = new
                account.left += new.units - old.units
                account.exhausted = account.exhausted and new.units <= old.units
            kept = {(budget.name, budget.unit) for budget in budgets}
            self._means = {name: mean for name, mean in self._means.items() if name in kept}

    def reserve(self, call: Call, now: float, tick: float, age_s: float, *, reachable: bool) -> Account | None:
        """Reserve what the call may take in all its accounts (``call.reserved``), or in none and say which refuses.

        Args:
            call: that is about to be made.
            now: seconds since 1970.
            tick: monotonic seconds.
            age_s: since the control plane was last heard of.
            reachable: whether the last attempt to hear of it worked.
        """
        held: list[tuple[Account, int]] = []
        call.reserved = held
        with self._lock:
            for budget in self.budgets:
                key = budget.key(call)
                if key is None:
                    continue
                account = self._account(budget, key, now, tick)
                estimate = self._estimate(budget)
                refused = not _admits(account, estimate, age_s, reachable=reachable)
                if refused:
                    for other, amount in held:
                        other.used -= amount
                        other.under_way -= 1
                    call.reserved = None
                else:
                    account.used += estimate
                    account.under_way += 1
                    held.append((account, estimate))
                self._look_after(account, estimate)
                if refused:
                    return account
        return None

    def settle(self, call: Call, spent: Spent, now: float, tick: float) -> None:
        """Turn what was reserved into what was spent; a call that reserved nothing is debited.

        Args:
            call: that ended.
            spent: by it. Of what nobody knows, and nobody can guess either, it has spent nothing.
            now: seconds since 1970.
            tick: monotonic seconds.
        """
        held, call.reserved = call.reserved or (), None
        with self._lock:
            # What was reserved before a fork is the parent's.
            held = [(a, estimate) for a, estimate in held if a.closed or self._accounts.get(a.place) is a]
            spenders = [account for account, _ in held]
            for account, estimate in held:
                account.used -= estimate
                account.under_way -= 1
                if account.closed:
                    self._stray(account, -estimate)
            names = {account.budget.name for account in spenders}
            others = [budget for budget in self.budgets if budget.name not in names]
            spenders += [self._account(b, key, now, tick) for b in others if (key := b.key(call)) is not None]
            for account in spenders:
                if not account.closed:
                    self._touch(account, tick)
                if (units := self._units(account.budget, spent)) is not None:
                    account.used += units
                    if account.closed:
                        self._stray(account, units)
                    else:
                        self._look_after(account, self._estimate(account.budget))

    def _units(self, budget: Budget, spent: Spent) -> int | None:
        known, guess = (
            (spent.tokens, spent.guessed_tokens)
            if budget.unit == "tokens"
            else (spent.micro_usd, spent.guessed_micro_usd)
        )
        if known is not None:
            self._learn(budget, known)
            return known
        # A guess teaches nothing: of a long stream only the beginning may be there, and nothing of what was asked.
        return None if guess is None else max(guess, self._estimate(budget))

    def exchange(self, connection: Connection, now: float, tick: float, *, last: bool = False) -> None:
        """Book in Redis whatever is to be booked. For the control thread.

        Args:
            connection: to Redis.
            now: seconds since 1970.
            tick: monotonic seconds.
            last: the process ends: everything that is left goes back.

        Raises:
            Exception: Redis cannot be reached, or says no. What was asked may have been booked nevertheless: then the
                counter is too high by that, so that nobody spends it, until its window ends.
        """
        asks = self._asks(now, tick, last=last)
        for start in range(0, len(asks), BATCH):
            batch = asks[start : start + BATCH]
            try:
                lefts = self._counters.book(connection, batch, now)
            except Exception:
                self._failed(asks[start:])
                raise
            if lefts is None:
                self._failed(asks[start:])
                self._begin_anew()
                return
            self._booked(batch, lefts, tick)

    def _asks(self, now: float, tick: float, *, last: bool) -> list[Ask]:
        """What to ask Redis for: for those that were noticed while they were used, and about once a second for all."""
        asks: list[Ask] = []
        with self._lock:
            while self._strays:
                asks.append(self._strays.popleft())
            needy, self._needy = self._needy, {}
            busy = [account for account in needy if not last and tick - account.used_at < IDLE_S]
            asks += [ask for account in busy if (ask := self._ask(account, tick)) is not None]
            if last or tick - self._scanned_at >= ASK_AGAIN_S:
                self._scanned_at = tick
                asks += self._idle(now, tick, last=last)
                if self._accounts and not asks:  # at least see whether Redis has lost its memory
                    asks.append(Ask(next(reversed(self._accounts.values())), 0, 0))
        return [ask for ask in asks if ask.account.ends_at > now]

    def _ask(self, account: Account, tick: float) -> Ask | None:
        left = account.leased - account.used
        if account.exhausted and left >= 0 and tick - account.asked_at < ASK_AGAIN_S:
            self._needy[account] = None
            return None
        need = max(account.budget.lease, self._estimate(account.budget))
        if 2 * left >= need:
            return None
        account.asked_at = tick
        return Ask(account, max(0, -left), need - max(0, left))

    def _idle(self, now: float, tick: float, *, last: bool) -> Iterable[Ask]:
        """Give back what idle accounts have left, and close those whose window is over."""
        asks = []
        for place, account in list(self._accounts.items()):
            if not last and tick - account.used_at < IDLE_S:
                break  # they are in the order of their use
            if account.ends_at <= now:
                self._remove(place)
            elif account.leased != account.used and (last or not account.under_way):
                asks.append(Ask(account, account.used - account.leased, 0))
                account.leased = min(account.leased, account.used)
        return asks

    def _booked(self, batch: Sequence[Ask], lefts: Sequence[int], tick: float) -> None:
        with self._lock:
            for (account, debit, want), left in zip(batch, lefts, strict=True):
                room = min(want, left)
                account.left = left - max(0, room)
                account.leased += max(0, debit) + max(0, room)
                if want or room < 0:
                    account.exhausted = room < want
                if not account.closed and (account.used > account.leased or tick - account.used_at < IDLE_S):
                    self._look_after(account, self._estimate(account.budget))

    def _failed(self, asks: Sequence[Ask]) -> None:
        """Ask again when Redis is back. What was given back is not taken back: it may have arrived."""
        with self._lock:
            for ask in asks:
                if ask.account.closed and ask.debit > 0:
                    self._strays.append(ask)
                elif not ask.account.closed:
                    self._needy[ask.account] = None

    def _begin_anew(self) -> None:
        """Redis has lost its memory: debit anew all that was spent."""
        with self._lock:
            for account in self._accounts.values():
                account.leased = 0
                self._needy[account] = None

    def _account(self, budget: Budget, key: str, now: float, tick: float) -> Account:
        window_s = budget.window_s
        place = (budget.name, key, int(now // window_s) * window_s)
        account = self._accounts.get(place)
        if account is None:
            while len(self._accounts) >= MAX_ACCOUNTS:
                self._close(next(iter(self._accounts)))
            account = self._accounts[place] = Account(budget, place)
        self._touch(account, tick)
        return account

    def _touch(self, account: Account, tick: float) -> None:
        account.used_at = tick
        self._accounts.move_to_end(account.place)

    def _close(self, place: tuple[str, str, int]) -> None:
        account = self._remove(place)
        self._stray(account, account.used - account.leased)

    def _remove(self, place: tuple[str, str, int]) -> Account:
        account = self._accounts.pop(place)
        self._needy.pop(account, None)
        account.closed = True
        return account

    def _stray(self, account: Account, debit: int) -> None:
        """Book for an account that is no longer in the table."""
        if debit:
            self._strays.append(Ask(account, debit, 0))
            self._wake()

    def _look_after(self, account: Account, estimate: int) -> None:
        """Tell the thread if less than half a lease is left."""
        left = account.leased - account.used
        if 2 * left < max(account.budget.lease, estimate) and account not in self._needy:
            self._needy[account] = None
            if not account.exhausted or left < 0:
                self._wake()

    def _estimate(self, budget: Budget) -> int:
        """What a call of this budget takes, by the recent ones."""
        mean = self._means.get((budget.name, budget.unit))
        return 1 if mean is None else max(1, round(mean[0]))

    def _learn(self, budget: Budget, spent: int) -> None:
        mean, calls = self._means.get((budget.name, budget.unit), (0.0, 0))
        calls = min(calls + 1, _RECENT)
        self._means[budget.name, budget.unit] = mean + (spent - mean) / calls, calls


def _admits(account: Account, estimate: int, age_s: float, *, reachable: bool) -> bool:
    budget = account.budget
    if age_s > budget.max_staleness_s:
        return not budget.closed
    ahead = account.used + estimate - account.leased
    if ahead <= 0:
        return True
    if account.exhausted:
        return False
    if not reachable and not budget.closed:
        return True
    # Further than a lease only while the debit follows at once.
    most = max(budget.lease, account.left // AHEAD) if reachable else budget.lease
    return ahead <= most or account.used <= account.leased


def micro_usd(usd: float | None) -> int | None:
    """Money in whole millionths of a US dollar; None if it is unknown or none."""
    return round(usd * MICRO) if isinstance(usd, int | float) and 0 <= usd < 1e9 else None
