"""What people did with letters, and the ledger's own count of dead records; in the database, through the driver's account."""

from __future__ import annotations

import getpass
from collections.abc import Sequence

from actors.adapters.postgres import Connection
from rayapp.config import Settings
from rayapp.letters.letter import Decision, Letter, state_key


def decisions(connection: Connection, settings: Settings) -> dict[str, Decision]:
    """Return the decision on each letter that has one, by state_key()."""
    rows = connection.execute("SELECT id, state, at, by, reason, copies FROM dead_letter_states WHERE pipeline = %s", (settings.pipeline,))
    connection.rollback()
    return {
        str(key): Decision(str(state), at.isoformat(timespec="milliseconds"), str(by), str(reason), int(copies))
        for key, state, at, by, reason, copies in rows
    }


def decide(connection: Connection, settings: Settings, letters: Sequence[Letter], state: str, why: str) -> None:
    """Write one decision on some letters, in one transaction; a later decision takes the place of an earlier one."""
    connection.count(
        "INSERT INTO dead_letter_states (pipeline, id, state, by, reason, copies)"
        " SELECT %s, l.id, %s, %s, %s, l.copies FROM unnest(%s::text[], %s::bigint[]) AS l(id, copies)"
        " ON CONFLICT (pipeline, id) DO UPDATE SET state = EXCLUDED.state, at = EXCLUDED.at, by = EXCLUDED.by,"
        " reason = EXCLUDED.reason, copies = EXCLUDED.copies",
        (
            settings.pipeline, state, getpass.getuser(), why,
            [state_key(letter.id) for letter in letters], [letter.copies for letter in letters],
        ),
    )  # fmt: skip
    connection.commit()


def ledger_counts(connection: Connection, settings: Settings) -> dict[str, int]:
    """Return dead records by reason as the ledger counted them."""
    rows = connection.execute(
        "SELECT reason, sum(dead)::bigint FROM ledger_dead_reasons WHERE pipeline = %s AND topic = %s GROUP BY reason",
        (settings.pipeline, settings.kafka.topic),
    )
    connection.rollback()
    return {str(reason): int(dead) for reason, dead in rows}
