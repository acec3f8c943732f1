"""How a slot's session ends without losing what the broker has queued for it.

A session that nobody serves goes on swallowing its share of the messages, and
a session that is simply deleted takes its queue with it. So a live actor takes
the session, and then, over one connection:

    UNSUBSCRIBE                              no new message is queued for it
    receive, produce, acknowledge            until nothing is held here
    UNSUBSCRIBE nothing … UNSUBACK           a PUBLISH in between? again from the line above
    DISCONNECT, session expiry 0             the session is gone

The request for nothing is the proof: the broker takes requests in order, and
PUBACKs bring out whatever it has queued, so an answer without a message before
it means that it has unsubscribed and that nothing is left. A lost connection, or a kill, starts over: every step may be
done twice.
"""

from __future__ import annotations

from typing import Protocol


class Requests(Protocol):
    """What retirement asks of a session (MqttSession)."""

    def unsubscribe(self) -> object:
        """Ask for the end of the subscription."""

    def ask_nothing(self) -> int:
        """Ask for an answer."""

    def answered(self, request: int) -> bool:
        """Say whether a request was answered."""


class Retirement:
    """The steps of one connection; made right after connecting.

    Raises:
        BrokerUnavailable: the connection is lost (every method).
    """

    def __init__(self, session: Requests) -> None:
        self._session = session
        session.unsubscribe()
        self._proof: int | None = None

    def empty(self, received: int, held: int) -> bool:
        """Take one step; True when the session is proven to be empty.

        Args:
            received: messages that came since the last call.
            held: messages that are not acknowledged yet.
        """
        if received or held:
            self._proof = None
        elif self._proof is None:
            self._proof = self._session.ask_nothing()
        else:
            return self._session.answered(self._proof)
        return False
