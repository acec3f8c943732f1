"""Every failure this project names, as one tree.

    RayappError
    ├── ConfigurationError       a setting is wrong: key, value, rule and fix are in the message
    ├── IncompatibleSchema       the registry refuses our schema: nothing is started
    ├── DependencyUnavailable    a server is away: wait and try again, never a reason to drop data
    │   ├── DatabaseUnavailable
    │   ├── KafkaUnavailable
    │   └── BrokerUnavailable    (MQTT)
    ├── OwnershipLost            somebody else holds the slot, partition or pipeline now: stop at once
    │   ├── StaleDriver
    │   ├── StaleClaim
    │   └── SessionTakenOver
    ├── DataLoss                 what the ledger points at is gone: only an operator may go on
    ├── DeliveryFailed           Kafka refused a record for good: the actor ends, the broker resends
    ├── DownstreamLost           an actor we handed batches to is gone: the driver claims again
    ├── BadRows                  the database refuses rows as data (SQLSTATE class 22, named constraint)
    ├── StatementRefused         the database is up and refuses, and not for the data: again and again = a partition halts
    │   └── LedgerBroken         the ledger's counters would not add up: a bug, and nothing was stored
    └── StackError               a server of the local stack did not come up or answer

A subclass says what the caller can do about it. The message says what failed,
with which id, and what the system does next.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial


class RayappError(Exception):
    """Root of all errors of this project."""


class ConfigurationError(RayappError):
    """A setting is wrong; the message names key, value, rule and fix."""


class IncompatibleSchema(RayappError):
    """The registry holds a schema that ours would break; the start is refused."""


class DependencyUnavailable(RayappError):
    """A server does not answer; the caller waits and tries again."""


class DatabaseUnavailable(DependencyUnavailable):
    """PostgreSQL does not answer, or the connection broke; a COMMIT's outcome may be unknown."""


class KafkaUnavailable(DependencyUnavailable):
    """No Kafka broker answers."""


class BrokerUnavailable(DependencyUnavailable):
    """The MQTT broker does not answer or closed the connection."""


class OwnershipLost(RayappError):
    """Somebody else owns what this process worked on; it stops at once."""


class StaleDriver(OwnershipLost):
    """Another driver raised the pipeline's driver_epoch."""


class StaleClaim(OwnershipLost):
    """The partition or slot carries another epoch or owner."""


class SessionTakenOver(OwnershipLost):
    """The MQTT broker says another client uses this slot's client id (0x8E)."""


class DataLoss(RayappError):
    """The ledger points at records that the log no longer holds.

    Attributes:
        partition: whose records, when one partition's error said so.
    """

    def __init__(self, message: str, partition: int | None = None) -> None:
        super().__init__(message)
        self.partition = partition

    def __reduce__(self) -> tuple[type[DataLoss], tuple[str, int | None]]:
        return type(self), (str(self), self.partition)


class DeliveryFailed(RayappError):
    """Kafka refused a record for good."""


class DownstreamLost(RayappError):
    """A detect or write actor is gone; what it held is read again from Kafka."""


class BadRows(RayappError):
    """PostgreSQL refuses rows as data.

    Attributes:
        sqlstate: the server's five-character code.
        constraint: name of the violated constraint, or None.
    """

    def __init__(self, message: str, *, sqlstate: str, constraint: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.constraint = constraint

    def __reduce__(self) -> tuple[Callable[..., BadRows], tuple[str]]:
        return partial(type(self), sqlstate=self.sqlstate, constraint=self.constraint), (str(self),)


class StatementRefused(RayappError):
    """PostgreSQL is up and refuses a statement, and nothing proves that the data is to blame: a bug, a limit, damage.

    Tried again, because the reason may pass; a partition in which it does not pass halts. Never a dead letter.

    Attributes:
        sqlstate: the server's five-character code, "" when the client library refused.
        constraint: name of the violated constraint, or None.
    """

    def __init__(self, message: str, *, sqlstate: str, constraint: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.constraint = constraint

    def __reduce__(self) -> tuple[Callable[..., StatementRefused], tuple[str]]:
        return partial(type(self), sqlstate=self.sqlstate, constraint=self.constraint), (str(self),)


class LedgerBroken(StatementRefused):
    """A batch's rows and dead letters do not add up to its records; the ledger refused it."""


class StackError(RayappError):
    """A server of the local stack did not start, answer or stop."""
