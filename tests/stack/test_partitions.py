"""A halted partition and the person who lets it go on, on a real Kafka and PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import batch, reading
from click.testing import CliRunner, Result

from actors.adapters.kafka import RecordProducer, Topics
from actors.adapters.postgres import Connection, connect
from actors.batch import PartitionClaim
from actors.write.ledger import Ledger
from rayapp.claims import Claims
from rayapp.cli import cli
from rayapp.config import Settings

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]


class World:
    """A pipeline with ten records in partition 0, five of them stored, and the partition halted."""

    def __init__(self, settings: Settings, topics: Topics, connections: list[Connection], owner: Connection, config: Path) -> None:
        self.settings, self.topics, self.owner, self.config = settings, topics, owner, config
        self.connection = connect(settings.database, "driver", application="tests driver")
        self.writer = connect(settings.database, "writer", application="tests writer")
        connections += [self.connection, self.writer]
        self.claims = Claims(self.connection, settings.pipeline, "tests")
        self.claims.become_driver()
        self.topic = settings.kafka.topic

    def produce(self, records: int) -> None:
        """Put records into partition 0."""
        producer = RecordProducer(self.settings.kafka)
        assert records == producer.produce(self.topic, 0, ["k"] * records, [b"v"] * records, lambda *_: None)
        while len(producer):
            producer.poll(0.1)

    def claim(self) -> PartitionClaim:
        """Claim partition 0, halted or not; raises IndexError when nobody may hold it."""
        first = self.topics.offsets(self.topic, 3)[0][0]
        held = self.claims.claim_partitions(self.topic, self.topics.identity(), {0: first}, "consume/0#1").held
        return PartitionClaim(self.topic, 0, held[0].epoch, "consume/0#1", 0, 0)

    def run(self, *arguments: str) -> Result:
        """Run the command line."""
        return CliRunner().invoke(cli, [*arguments, "--config", str(self.config)])

    def row(self) -> tuple[object, ...]:
        """Return next_offset, counted_from, records, halted."""
        return self.owner.execute(
            "SELECT next_offset, counted_from, records, halted FROM ingest_ledger WHERE pipeline = %s AND partition = 0",
            (self.settings.pipeline,),
        )[0]


@pytest.fixture
def world(
    settings: Settings, topics: Topics, connections: list[Connection], owner: Connection, tmp_path: Path, request: pytest.FixtureRequest
) -> World:
    """The world, fresh for each test: what an earlier test left of partition 0 is deleted."""
    owner.execute("DELETE FROM ledger_dead_reasons WHERE pipeline = %s", (settings.pipeline,))
    owner.execute("DELETE FROM ingest_ledger WHERE pipeline = %s", (settings.pipeline,))
    config = tmp_path / "rayapp.yaml"
    config.write_text(settings.model_dump_json(), encoding="utf-8")  # JSON is YAML
    made = World(settings, topics, connections, owner, config)
    made.produce(10)
    held = made.claim()
    first = int(made.row()[0])  # type: ignore[call-overload]
    ledger = Ledger(made.writer, settings.pipeline)
    ledger.advance(batch([reading(first + n) for n in range(5)], first, first + 5, held=held), _counts(5))
    made.writer.commit()
    ledger.halt(held, "too many dead")
    made.first = first  # type: ignore[attr-defined]
    return made


def _counts(stored: int) -> object:
    from actors.write.ledger import Counts

    return Counts(stored, 0, 0)


def test_halted_partition_is_given_to_nobody_until_it_is_resumed(world: World) -> None:
    """A claim leaves it out and says why; after `resume --at next` it goes on where it stood, and who decided is written down."""
    first = world.first  # type: ignore[attr-defined]
    with pytest.raises(IndexError):
        world.claim()
    listed = world.run("partition", "list")
    assert (1, True) == (listed.exit_code, "HALTED" in listed.output)

    done = world.run("partition", "resume", world.topic, "0", "--why", "they were a test", "--yes")

    assert 0 == done.exit_code, done.output
    assert (first + 5, first, 5, None) == world.row()
    assert world.claim().epoch >= 3
    assert 0 == world.run("partition", "list").exit_code
    assert [("they were a test", "too many dead", first + 5, first + 5)] == world.owner.execute(
        "SELECT why, halted, from_offset, to_offset FROM partition_decisions WHERE pipeline = %s ORDER BY id DESC LIMIT 1",
        (world.settings.pipeline,),
    )


def test_skipping_is_a_decision_that_keeps_the_equation(world: World) -> None:
    """`--at end` gives the rest up: the position moves, and what was counted still fits the offsets."""
    end = world.topics.offsets(world.topic, 3)[0][1]
    first = world.first  # type: ignore[attr-defined]
    done = world.run("partition", "resume", world.topic, "0", "--at", "end", "--why", "lost", "--yes")

    assert (0, True) == (done.exit_code, f"{end - first - 5} offsets are given up" in done.output)
    assert (end, end - 5, 5, None) == world.row()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("other-topic", "0"), "TOPIC = other-topic"),
        (("{topic}", "9"), "PARTITION = 9"),
        (("{topic}", "0", "--at", "soon"), "--at = soon"),
        (("{topic}", "0", "--at", "99999999"), "outside the log"),
    ],
)
def test_wrong_decisions_are_refused_by_name(world: World, arguments: tuple[str, ...], words: str) -> None:
    """Key, value and rule are in the message, the exit code is 2, and nothing changes."""
    before = world.row()
    done = world.run("partition", "resume", *(a.format(topic=world.topic) for a in arguments), "--why", "x", "--yes")

    assert (2, True) == (done.exit_code, words in done.output), done.output
    assert before == world.row()


def test_partition_that_is_not_halted_is_left_alone(world: World) -> None:
    """Resuming twice is refused: the second one would move a position under a working owner."""
    assert 0 == world.run("partition", "resume", world.topic, "0", "--why", "x", "--yes").exit_code
    again = world.run("partition", "resume", world.topic, "0", "--at", "start", "--why", "x", "--yes")
    assert (2, True) == (again.exit_code, "not halted" in again.output)


def test_topic_made_anew_needs_to_be_accepted(world: World) -> None:
    """With another topic id old offsets mean nothing: only --accept-topic goes on, and counts anew from the start."""
    world.owner.execute("UPDATE ingest_ledger SET topic_id = 'old', halted = NULL WHERE pipeline = %s", (world.settings.pipeline,))
    with pytest.raises(IndexError):
        world.claim()
    refused = world.run("partition", "resume", world.topic, "0", "--at", "start", "--why", "x", "--yes")
    assert (2, True) == (refused.exit_code, "--accept-topic" in refused.output)

    done = world.run("partition", "resume", world.topic, "0", "--at", "start", "--accept-topic", "--why", "x", "--yes")

    low = world.topics.offsets(world.topic, 3)[0][0]
    assert 0 == done.exit_code, done.output
    assert (low, low - 5, 5, None) == world.row()
    assert world.claim().partition == 0
