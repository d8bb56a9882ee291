"""What every way of delivering a message says of it."""

from typing import Protocol

from notification_service.letters import Message


class DeliveryError(Exception):
    """A message that was not accepted; `reason` is for machines and says nothing of the person.

    `final` where another attempt would end the same way, `at_large` where it would have hit any other message, too.
    """

    def __init__(self, reason: str, *, final: bool = False, at_large: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.final = final
        self.at_large = at_large


class Delivery(Protocol):
    """A way to hand a message to somebody who takes it from there."""

    async def send(self, message: Message) -> None:
        """Returns when the message was accepted; raises DeliveryError when it was not, or nobody can say."""

    async def close(self) -> None:
        """Let go of connections."""
