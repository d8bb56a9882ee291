"""The steps of each type of transaction. Each may be repeated: wallet-service and payment-gateway do a thing once."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from uuid import UUID

from transaction_service.clients import Action, LedgerOutcome, OrderOutcome, PaymentClient, WalletClient
from transaction_service.domain import Decision, Transaction, Type, failure_of_refusal

_log = logging.getLogger(__name__)

_Step = Callable[[Sequence[Transaction]], Awaitable[list[Decision]]]


class Steps:
    """Carries transactions out; those whose outcome is not known have no decision."""

    def __init__(self, wallets: WalletClient, payments: PaymentClient) -> None:
        self._wallets = wallets
        self._payments = payments

    async def carry_out(self, transactions: Sequence[Transaction]) -> list[Decision]:
        """Every step of each transaction. What goes wrong with one type leaves the others alone."""
        groups: dict[_Step, list[Transaction]] = {}
        for transaction in transactions:
            groups.setdefault(self._step(transaction), []).append(transaction)
        if len(groups) == 1:
            [(step, group)] = groups.items()
            return await step(group)
        results = await asyncio.gather(*(step(group) for step, group in groups.items()), return_exceptions=True)
        decisions = []
        for result in results:
            if isinstance(result, BaseException):
                _log.error("transactions left to the sweeper", exc_info=result)
            else:
                decisions += result
        return decisions

    def _step(self, transaction: Transaction) -> _Step:
        if transaction.goes_out:
            return self._pay_out
        match transaction.type:
            case Type.DEPOSIT:
                return self._deposit
            case Type.PAYMENT:
                return self._pay
            case Type.PAYOUT_RETURN:
                return self._take_back
            case Type.DISPUTE:
                return self._dispute
            case _:
                return self._move

    async def _move(self, transactions: Sequence[Transaction]) -> list[Decision]:
        """A transfer, or the refund of what was received: one posting."""
        return _decisions(transactions, await self._wallets.post(Action.MOVE, transactions))

    async def _pay(self, payments: Sequence[Transaction]) -> list[Decision]:
        """A payment is a move that only a merchant's wallet takes, with the fee stored when it was opened."""
        return _decisions(payments, await self._wallets.post(Action.PAY, payments))

    async def _take_back(self, returns: Sequence[Transaction]) -> list[Decision]:
        """A payout that came back goes into the wallet again."""
        providers = _providers(returns)
        return _decisions(returns, await self._wallets.post(Action.RETURN, returns, providers), providers)

    async def _dispute(self, disputes: Sequence[Transaction]) -> list[Decision]:
        """A charge that was disputed leaves the wallet, as far as it is there."""
        providers = _providers(disputes)
        return _decisions(disputes, await self._wallets.post(Action.DISPUTE, disputes, providers), providers)

    async def _deposit(self, deposits: Sequence[Transaction]) -> list[Decision]:
        """Check, charge, post. What the ledger refuses fails only after it is sure that nothing stays charged."""
        checks = await self._wallets.post(Action.CHECK, deposits)
        accepted = {id_ for id_, check in checks.items() if not check.code}
        # What is to be stopped is stopped at the provider too, whatever the ledger says.
        asked = [d for d in deposits if d.id in accepted or (d.id in checks and d.cancel_requested)]
        charges = await self._payments.execute(asked)
        declined = _declines(deposits, charges)
        charged = [d for d in asked if d.id in accepted & charges.keys() and charges[d.id].status == "succeeded"]
        providers = {id_: charge.provider for id_, charge in charges.items()}
        posted = await self._wallets.post(Action.MOVE, charged, providers)
        ended = {decision.transaction.id for decision in declined}
        refused = {id_: outcome for id_, outcome in (checks | posted).items() if outcome.code and id_ not in ended}
        refunds = await self._payments.undo([d for d in deposits if d.id in refused])
        settled = {
            id_: outcome
            for id_, outcome in (refused | posted).items()
            if not outcome.code or (id_ in refunds and _nothing_stays_charged(refunds[id_]))
        }
        return declined + _decisions(deposits, settled, providers)

    async def _pay_out(self, transactions: Sequence[Transaction]) -> list[Decision]:
        """Hold, pay out (or refund at the provider), then capture; release only what surely was not paid out."""
        holds = await self._wallets.post(Action.HOLD, transactions)
        refused = {id_: outcome for id_, outcome in holds.items() if outcome.code}
        orders = await self._payments.execute([t for t in transactions if t.id in holds and t.id not in refused])
        providers = {id_: order.provider for id_, order in orders.items()}
        paid = [t for t in transactions if t.id in orders and orders[t.id].status == "succeeded"]
        captured = await self._wallets.post(Action.CAPTURE, paid, providers)
        declined = [t for t in transactions if t.id in orders and orders[t.id].status == "declined"]
        released = await self._wallets.post(Action.RELEASE, declined)
        for id_, outcome in (captured | released).items():
            if outcome.code:
                _log.error("transaction %s needs a person: the ledger says %s after its payout", id_, outcome.code)
        ended = {id_: outcome for id_, outcome in captured.items() if not outcome.code}
        let_go = {id_: orders[id_] for id_, outcome in released.items() if not outcome.code}
        return _declines(transactions, let_go) + _decisions(transactions, refused | ended, providers)


def _providers(reversals: Sequence[Transaction]) -> dict[UUID, str]:
    return {reversal.id: str(reversal.provider) for reversal in reversals}


def _nothing_stays_charged(refund: OrderOutcome) -> bool:
    """The refund succeeded, or the charge took nothing, or a dispute took it back.

    A refund that is declined for another reason waits for a person.
    """
    if refund.code == "charge_disputed":
        return True
    if refund.status == "declined" and refund.kind == "refund":
        _log.error("a refund was declined by %s: %s", refund.provider, refund.code)
    return refund.status == ("succeeded" if refund.kind == "refund" else "declined")


def _declines(transactions: Sequence[Transaction], orders: Mapping[UUID, OrderOutcome]) -> list[Decision]:
    """The transactions that end with the provider's no."""
    return [
        Decision(t, failure_code=orders[t.id].code or "declined", declined=True, provider=orders[t.id].provider)
        for t in transactions
        if t.id in orders and orders[t.id].status == "declined"
    ]


def _decisions(
    transactions: Sequence[Transaction],
    outcomes: Mapping[UUID, LedgerOutcome],
    providers: Mapping[UUID, str] | None = None,
) -> list[Decision]:
    """The transactions that end with the ledger's word."""
    decisions = []
    for transaction in transactions:
        outcome = outcomes.get(transaction.id)
        if outcome is None:
            continue
        if not outcome.code:
            provider = (providers or {}).get(transaction.id)
            decisions.append(Decision(transaction, payee_user_id=outcome.payee_user_id, provider=provider))
        elif failure := failure_of_refusal(outcome.code):
            decisions.append(Decision(transaction, failure, outcome.available_minor))
        else:
            _log.error("transaction %s needs a person: the ledger says %s", transaction.id, outcome.code)
    return decisions
