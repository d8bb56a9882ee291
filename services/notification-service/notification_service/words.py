"""What people are told, in words. `{amount}` and the like are facts of the notice; names are never in here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Words:
    """A message: `subject` is also its headline, `sms` the whole of it in a text message."""

    subject: str
    text: str
    sms: str
    advice: str = ""


FACT_LABELS: Final[Mapping[str, str]] = {
    "amount": "Amount",
    "fee": "Fee",
    "net": "You receive",
    "ip": "IP address",
    "device": "Device",
    "transaction_id": "Reference",
}
"""The facts that a mail lists, in this order."""

NOT_YOU: Final = "If this was not you, change your password now and look through your recent transactions."

WORDS: Final[Mapping[str, Words]] = {
    "welcome": Words(
        "Welcome",
        "Your account is ready. Create a wallet, deposit some money, and you can pay and be paid.",
        "Welcome! Your account is ready.",
    ),
    "new_device": Words(
        "New sign-in to your account",
        "Somebody signed in to your account from a device or a network that we had not seen you use before.",
        "New sign-in to your account from {ip}. If this was not you, change your password now.",
        NOT_YOU,
    ),
    "password_changed": Words(
        "Your password was changed",
        "The password of your account was changed, and all other sessions were ended.",
        "The password of your account was changed. If this was not you, contact support now.",
        "If this was not you, contact support now: somebody else may have access to your account.",
    ),
    "deposit": Words(
        "You deposited {amount}",
        "Your deposit has arrived and is in your wallet.",
        "Your deposit of {amount} has arrived.",
    ),
    "withdrawal": Words(
        "You withdrew {amount}",
        "Your withdrawal is done. The money is on its way to you.",
        "Your withdrawal of {amount} is on its way. If this was not you, change your password now.",
        NOT_YOU,
    ),
    "money_sent": Words(
        "You sent {amount}",
        "Your payment went through. The money has arrived.",
        "You sent {amount}.",
        NOT_YOU,
    ),
    "money_received": Words(
        "You received {amount}",
        "Somebody sent you money. It is in your wallet.",
        "You received {amount}.",
    ),
    "payment_received": Words(
        "You were paid {amount}",
        "A customer has paid you. The money is in your wallet.",
        "You were paid {amount}.",
    ),
    "refund_sent": Words(
        "You refunded {amount}",
        "Your refund is done. The money went back to the payer's wallet.",
        "You refunded {amount}.",
    ),
    "refund_received": Words(
        "You were refunded {amount}",
        "A payment of yours was refunded. The money is in your wallet again.",
        "You were refunded {amount}.",
    ),
    "deposit_refund": Words(
        "Your refund of {amount}",
        "A deposit of yours is on its way back to where it came from.",
        "{amount} of your deposit are on their way back to you.",
    ),
    "failure": Words(
        "Your {transaction} of {amount} was refused",
        "It could not be completed. No money has moved.",
        "Your {transaction} of {amount} was refused. No money has moved.",
        "Your list of transactions says why. You may try again.",
    ),
    "cancelled": Words(
        "Your {transaction} of {amount} was cancelled",
        "It was cancelled before it was done. No money has moved.",
        "Your {transaction} of {amount} was cancelled. No money has moved.",
    ),
    "payout_return": Words(
        "A withdrawal of {amount} came back",
        "Your bank sent a withdrawal back. The money is in your wallet again.",
        "A withdrawal of {amount} came back and is in your wallet again.",
        "Check the details of your bank account before you withdraw again.",
    ),
    "dispute": Words(
        "A deposit of {amount} was disputed",
        "The payer of a deposit took it back. The money was taken from your wallet, which is frozen.",
        "A deposit of {amount} was disputed and taken back. Your wallet is frozen.",
        "Contact support to have it looked into.",
    ),
}


def subject_of(template: str, facts: Mapping[str, str]) -> str:
    """The subject of a notice, its facts filled in."""
    return WORDS[template].subject.format_map(facts)


def sms_of(template: str, facts: Mapping[str, str]) -> str:
    """A notice as a text message."""
    return WORDS[template].sms.format_map(facts)


def listed_facts(facts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Labels and values of the facts that stand below the text."""
    return [(label, facts[name]) for name, label in FACT_LABELS.items() if name in facts]
