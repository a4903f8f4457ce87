"""What the control plane says, pulled in the background and acted on before the call: kill switches, budgets, weights.

A thread asks Redis every quarter of a second for the revision of the control document, and for the document when that
has changed. Calls read the compiled document as it is: a plain attribute, no lock, no I/O, no wait. When Redis cannot
be reached, or has no document any more, the last good one stays in force, and each entry's ``fail`` says what holds
once ``max_staleness_s`` have passed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from evalpipe.errors import BudgetExceeded, CallRefused, KillSwitchEngaged
from evalpipe.hook.assignment import assign
from evalpipe.hook.budgets import Budgets, Spent, micro_usd
from evalpipe.hook.connection import Connection
from evalpipe.hook.document import Document, DocumentError, Prices, Rates, parse, parse_prices
from evalpipe.hook.logs import log

if TYPE_CHECKING:
    from evalpipe.hook.call import Call
    from evalpipe.hook.leases import Account
    from evalpipe.hook.options import Options

KEY: Final = "evalpipe.control:"
"""A Redis hash for each service: ``revision``, ``document``, ``prices``."""
POLL_S: Final = 0.25
TIMEOUT_S: Final = 1.0
"""Of connecting, and of each answer."""
MAX_PAUSE_S: Final = 1.0
MIN_GAP_S: Final = 0.01
"""Leases are fetched at once when calls need them, but not more often than this."""
LOG_AGAIN_S: Final = 60.0
BASELINE: Final = "baseline"
UNKNOWN: Final = "fail-closed"
"""The name that a refusal has while no switch is known."""
NOTHING_KNOWN: Final = "the control plane has not been heard of yet, and the hook was made with fail='closed'"
STALE: Final = "the control plane has not been heard of for {:.0f} s, and this {} fails closed"
NOT_LEASED: Final = "calls of this process are too far ahead of what it has leased: try again in a second"
NO_LEASE: Final = "what this process has leased is spent, Redis cannot be reached, and this budget fails closed"
AGAIN_S: Final = 1.0
"""When it is worth trying again what was refused although the budget is not used up."""
CHARS_A_TOKEN: Final = 4
"""Of the answer of a call whose usage is unknown; most texts have fewer."""
MAX_MODELS: Final = 1000
"""Models whose price is remembered."""
_UNITS: Final = 1 << 53


class Control:
    """What one hook in one process knows of its controls.

    Attributes:
        active: whether any call may be refused, or spends from a budget; while it is False nothing here need be asked.
        document, prices: the last good ones; None and {} before the first.
        heard_at: when it was last known that they are in force, in monotonic seconds.
    """

    def __init__(self, options: Options, known: Control | None = None) -> None:
        """The control of a process; after a fork, what ``known`` (the parent's) knew holds until the child hears."""
        self._service = options.release.service
        self._url = options.redis_url
        self._closed = options.fail == "closed"
        self._own_prices: Prices = options.prices
        self.prices: Prices = known.prices if known else {}
        self.document: Document | None = known.document if known else None
        self.heard_at: float = known.heard_at if known else time.monotonic()
        self._listeners: list[Callable[[Rates], None]] = []
        self._priced: dict[str, tuple[float, ...] | None] = {}
        self._budgets = Budgets(self._service, self._wake)
        self._budgets.adopt(self.document.budgets if self.document else ())
        self.active = self._may_refuse()
        self._connection = Connection(self._url, connect_timeout_s=TIMEOUT_S, timeout_s=TIMEOUT_S)
        self._reachable = False
        self._seen: bytes | None = None
        self._good = False
        self._problems: list[str] = []
        self._failures = 0
        self._due = 0.0
        # A pace of its own for each process, so that a thousand of them do not ask in step.
        self._poll_s = POLL_S * (0.9 + os.urandom(1)[0] / 1280)
        self._woken = False
        self._signal: SimpleQueue[None] = SimpleQueue()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._booked_at = self._logged_at = float("-inf")

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: the system gives no thread.
        """
        if self._thread is None and self._url and not self._stopping:
            thread = threading.Thread(target=self._run, name="evalpipe-control", daemon=True)
            thread.start()
            self._thread = thread

    def stop(self, timeout_s: float) -> None:
        """Give leases back and end the thread, waiting for at most ``timeout_s``."""
        self._stopping = True
        self._signal.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(max(0.0, timeout_s))

    def on_rates(self, callback: Callable[[Rates], None]) -> None:
        """Call ``callback`` with the sampling rates whenever a document has been read, and now if there is one."""
        self._listeners.append(callback)
        if self.document is not None:
            callback(self.document.rates)

    def refuse(self, call: Call) -> CallRefused | None:
        """What forbids the call, or None; then what it may spend is reserved, and ``settle`` must follow it."""
        document = self.document
        if document is None:
            return _refusal(UNKNOWN, call, NOTHING_KNOWN, "") if self._closed else None
        tick = time.monotonic()
        age_s = tick - self.heard_at
        for switch in document.switches:
            if switch.fits(call):
                if age_s > switch.max_staleness_s:
                    if switch.closed:
                        return _refusal(switch.name, call, STALE.format(age_s, "switch"), switch.incident)
                elif switch.engaged:
                    return _refusal(switch.name, call, switch.reason, switch.incident)
        if self._budgets.budgets:
            reachable = self._reachable
            refused = self._budgets.reserve(call, time.time(), tick, age_s, reachable=reachable)
            return None if refused is None else _exceeded(refused, call, age_s, reachable=reachable)
        return None

    def settle(self, call: Call) -> None:
        """Debit what the call took, whether or not it was enforced."""
        if self._budgets.budgets or call.reserved:
            tokens = _tokens(call.input_tokens, call.output_tokens)
            usd = call.cost_usd
            if usd is None:
                usd = self.cost(call.model, call.input_tokens, call.output_tokens, call.cached_tokens)
            spent = Spent(tokens, micro_usd(usd))
            if tokens is None and type(output := call.output) is str and output and not call.nested:
                # A stream that told no usage, or was left before it did, was paid for all the same. Of calls that are
                # not captured its beginning is here; the account debits what is usual if that is more. Where calls were
                # made inside of this one, these spent it.
                guess = max(1, len(output) // CHARS_A_TOKEN)
                price = 0 if spent.micro_usd is not None else micro_usd(self.cost(call.model, None, guess, None)) or 0
                spent = Spent(tokens, spent.micro_usd, guess, price)
            self._budgets.settle(call, spent, time.time(), time.monotonic())

    def variant(self, name: str, unit: str, environment: str) -> str:
        """The arm of ``unit`` in the rollout ``name``; the baseline where there is no such rollout, or no unit."""
        rollout = self.document.rollout(name, environment) if self.document is not None else None
        if rollout is None:
            return BASELINE
        return (assign(name, unit, rollout.weights) if unit else None) or rollout.baseline

    def shadow(self, name: str, environment: str) -> tuple[float, float] | None:
        """Share of traces, and shadows a minute, of the rollout ``name``; None if it has no shadow."""
        rollout = self.document.rollout(name, environment) if self.document is not None else None
        return None if rollout is None else rollout.shadow

    def cost(
        self, model: str, input_tokens: int | None, output_tokens: int | None, cached_tokens: int | None
    ) -> float | None:
        """US dollars for these tokens; None if they, or the model's price, are unknown."""
        if type(model) is not str or (input_tokens is None and output_tokens is None):
            return None
        priced = self._priced
        if model not in priced:
            if len(priced) >= MAX_MODELS:  # their names come from outside
                priced.clear()
            priced[model] = _price(model, self._own_prices) or _price(model, self.prices)
        if (price := priced.get(model)) is None:
            return None
        of_cached = price[2] if len(price) > 2 else price[0]
        try:
            read, cached = input_tokens or 0, min(cached_tokens or 0, input_tokens or 0)
            return ((read - cached) * price[0] + (output_tokens or 0) * price[1] + cached * of_cached) / 1e6
        except TypeError:  # the application may have set anything
            return None

    def _may_refuse(self) -> bool:
        if self.document is None:
            return self._closed
        return bool(self.document.switches or self.document.budgets)

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._signal.put(None)

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._turn(time.monotonic())
            except Exception as error:  # noqa: BLE001 - the socket's, the resolver's, Redis's own
                self._failed(error)
            self._rest()
        if self._reachable:
            with suppress(Exception):  # leases that are not given back expire with their window
                self._budgets.exchange(self._connection, time.time(), time.monotonic(), last=True)
        self._connection.close()

    def _turn(self, tick: float) -> None:
        """Pull what is due, then book what the budgets need."""
        # After a failure a pull must work before anything is booked: a Redis that hangs would, when it wakes up, carry
        # out whatever was sent to it meanwhile.
        if tick >= self._due or not self._reachable:
            self._pull()
            self._failures = 0
            self._reachable = True
            self._due = time.monotonic() + self._poll_s
        self._woken = False
        self._booked_at = time.monotonic()
        self._budgets.exchange(self._connection, time.time(), self._booked_at)

    def _rest(self) -> None:
        """Sleep until the next pull is due, or until a call needs a lease that Redis can give."""
        while not self._stopping and (left := self._due - time.monotonic()) > 0.0:
            try:
                self._signal.get(timeout=left)
            except Empty:
                return
            if self._reachable and not self._stopping:
                time.sleep(max(0.0, self._booked_at + MIN_GAP_S - time.monotonic()))
                return

    def _pull(self) -> None:
        key = KEY + self._service
        revision = self._connection.command("HGET", key, "revision")
        if revision is None:
            self._seen = None
            return
        if revision != self._seen:
            revision, document, prices = self._connection.command("HMGET", key, "revision", "document", "prices")
            self._good = self._read(document or b"", prices)
            self._seen = revision
        if self._good:
            self.heard_at = time.monotonic()

    def _read(self, text: bytes, prices: bytes | None) -> bool:
        """Take a document in force, unless it is unreadable or older than the one that is."""
        try:
            document = parse(text)
        except DocumentError as problem:
            log.warning("evalpipe: a control document is ignored, the one before stays in force: %s", problem)
            return False
        known = self.document
        if known is not None and document.revision < known.revision and document.published_at < known.published_at:
            # A Redis that was restored from an old copy. It must not release what was engaged since.
            log.warning("evalpipe: control document %d is ignored, %d is in force", document.revision, known.revision)
            return False
        self._tell(document.revision, [*document.skipped, *self._reprice(prices)])
        self.heard_at = time.monotonic()
        self._budgets.adopt(document.budgets)
        self.document = document
        self.active = self._may_refuse()
        for listener in self._listeners:
            try:
                listener(document.rates)
            except Exception as error:  # noqa: BLE001 - the thread must outlive whoever listens
                log.warning("evalpipe: the sampling rates were not taken: %r", error)
        return True

    def _tell(self, revision: int, problems: list[str]) -> None:
        """Log what is left out of a document, unless it was the same in the one before."""
        known, self._problems = self._problems, problems
        for problem in problems:
            if problem not in known:
                log.warning("evalpipe: left out of control document %d: %s", revision, problem)

    def _reprice(self, text: bytes | None) -> list[str]:
        """Take prices in force; those there were stay if they are none. Says what is wrong with them."""
        try:
            self.prices = (parse_prices(text) if text else None) or self.prices
        except DocumentError as problem:
            return [str(problem)]
        self._priced = {}
        return []

    def _failed(self, error: Exception) -> None:
        self._reachable = False
        self._connection.close()
        pause = min(MAX_PAUSE_S, POLL_S * 2.0 ** min(self._failures, 8))
        self._failures += 1
        # Spread over processes; not by the random module, whose state is the application's.
        self._due = time.monotonic() + pause * (0.5 + os.urandom(1)[0] / 512)
        if (now := time.monotonic()) - self._logged_at >= LOG_AGAIN_S:
            self._logged_at = now
            log.warning("evalpipe: Redis cannot be read, known controls stay in force: %s", type(error).__name__)
        log.debug("evalpipe: Redis cannot be read: %r", error)


def _refusal(name: str, call: Call, reason: str, incident: str) -> KillSwitchEngaged:
    return KillSwitchEngaged(name=name, feature=call.feature, reason=reason, incident=incident)


def _exceeded(account: Account, call: Call, age_s: float, *, reachable: bool) -> BudgetExceeded:
    from datetime import UTC, datetime

    budget = account.budget
    why = ""
    if age_s > budget.max_staleness_s:
        why = STALE.format(age_s, "budget")
    elif not account.exhausted and account.used < budget.units:
        why = NOT_LEASED if reachable else NO_LEASE
    refused = BudgetExceeded(
        name=budget.name,
        feature=call.feature,
        reason=why or budget.reason,
        limit=budget.limit,
        unit=budget.unit,
        window=budget.window,
        resets_at=datetime.fromtimestamp(time.time() + AGAIN_S if why else account.ends_at, UTC),
        incident=budget.incident,
    )
    if why:  # it is not used up, so do not say so
        of = f"{budget.limit:g} {budget.unit} a {budget.window}"
        told = f"the budget {budget.name!r} of {of} lets no call pass: {why}"
        refused.args = (f"{told} ({budget.incident})" if budget.incident else told,)
    return refused


def _tokens(input_tokens: Any, output_tokens: Any) -> int | None:
    """Their sum; None if both are unknown. The application may have set anything."""
    known = [n for n in (input_tokens, output_tokens) if isinstance(n, int | float) and 0 <= n < _UNITS]
    return int(sum(known)) if known else None


def _price(model: str, prices: Prices) -> tuple[float, ...] | None:
    """The price of ``model``: by its name, without the provider before it, or without the date or version after it."""
    name = model.rpartition("/")[2]
    if model in prices:
        return prices[model]
    while name:
        if name in prices:
            return prices[name]
        name, _, last = name.rpartition("-")
        if not (last in {"latest", "preview"} or (last.isdigit() and len(last) > 1)):
            return None
    return None
