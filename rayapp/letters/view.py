"""Letters as people and programs read them: lines, pages, objects, counts. Pure, but for the progress bar."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from actors.adapters.kafka_read import Record
from rayapp.letters import select, topic
from rayapp.letters.judge import Verdict
from rayapp.letters.letter import Letter
from rayapp.letters.replay import Tally

SHOWN_BYTES = 4_096
WHY_COUNTS_DIFFER = (
    "letters: distinct ids in the topic, under the reason of the last copy. ledger: records that consume and write passed over, ever.\n"
    "They differ: letters of stage ingest never became records; a replayed letter refused again is one letter, but counted again by the\n"
    "ledger; filters and --state choose letters only."
)


def line(letter: Letter) -> str:
    """Return one letter as one line, its id last, because it may be long."""
    return (
        f"{select.iso(letter.last_us)}  {letter.state:<8}  {letter.first.stage:<7}  {letter.reason:<28}  {letter.first.device or '-':<17}"
        f"  {letter.first.size_bytes:>6} B  x{letter.copies:<3}  {letter.id}"
    )


def as_object(letter: Letter) -> dict[str, Any]:
    """Return one letter for --json."""
    first = letter.first
    return {
        "id": letter.id,
        "state": letter.state,
        "reason": letter.reason,
        "stage": first.stage,
        "device": first.device,
        "copies": letter.copies,
        "first_time": select.iso(first.time_us),
        "last_time": select.iso(letter.last_us),
        "topic": first.topic,
        "partition": first.partition,
        "offset": first.offset,
        "size_bytes": first.size_bytes,
        "decided_at": letter.decided_at,
        "decided_by": letter.by,
        "why": letter.why,
    }


def details(letter: Letter, copies: Sequence[Record], verdict: Verdict | None, away: str | None) -> dict[str, Any]:
    """Return everything about one letter.

    Args:
        away: why today's rules could not be asked.
    """
    value = copies[0].value or b""
    try:
        text, encoding = value.decode(), "text"
        if not all(character.isprintable() or character in "\r\n\t" for character in text):
            text, encoding = value.hex(), "hex"
    except UnicodeDecodeError:
        text, encoding = value.hex(), "hex"
    if verdict is None:
        today = f"not asked: {away}"
    elif verdict.refused is not None:
        today = f"refused: {verdict.refused}"
    else:
        today = f"accepted: {len(verdict.records)} records" + (
            "; the table holds another value under its key, so it will be refused as conflict" if letter.reason == "conflict" else ""
        )
    return {
        **as_object(letter),
        "all_copies": [{"at": f"{copy.partition}/{copy.offset}", "size_bytes": len(copy.value or b""), **copy.headers} for copy in copies],
        "encoding": encoding,
        "bytes": text,
        "today": today,
        "decoded": verdict.view if verdict is not None else [],
    }


def page(found: Mapping[str, Any]) -> str:
    """Return details() as text."""
    lists = ("all_copies", "bytes", "encoding", "decoded", "today")
    lines = [f"{name:<11} {value}" for name, value in found.items() if name not in lists and value is not None]
    lines.extend("copy        " + "  ".join(f"{name}={value}" for name, value in copy.items()) for copy in found["all_copies"])
    shown = found["bytes"][:SHOWN_BYTES]
    more = "" if len(shown) == len(found["bytes"]) else f"\n… {len(found['bytes']) - len(shown)} characters more; all bytes: --raw"
    lines.append(f"bytes ({found['encoding']})\n{shown}{more}")
    lines.extend("reading     " + json.dumps(row, default=str, ensure_ascii=False) for row in found["decoded"])
    lines.append(f"today       {found['today']}")
    return "\n".join(lines)


def counts(what: str, letters: Mapping[str, int], ledger: Mapping[str, int] | None, *, as_json: bool) -> Iterator[str]:
    """Bring counts, the largest first; beside the ledger's when there are such."""
    names = sorted(letters.keys() | (ledger or {}).keys(), key=lambda name: (-letters.get(name, 0), name))
    if not as_json:
        yield f"{'letters':>10}  " + (f"{'ledger':>10}  " if ledger is not None else "") + what
    for name in names:
        beside = None if ledger is None else ledger.get(name, 0)
        if as_json:
            yield json.dumps({what: name, "letters": letters.get(name, 0)} | ({} if beside is None else {"ledger": beside}))
        else:
            yield f"{letters.get(name, 0):>10}  " + (f"{beside:>10}  " if beside is not None else "") + name


def why_skipped(letter: Letter) -> str | None:
    """Return why a letter is not replayed without --again, None when it is."""
    if letter.state == "dropped":
        return "dropped; --again replays them all the same"
    if letter.state == "replayed":
        return "replayed before; --again sends them once more"
    if letter.state == "refused":
        return "replayed before and refused again; --again tries once more"
    if letter.reason == "conflict":
        return "conflicts: the table holds another value under the same key and the first one stays; --again sends them all the same"
    return None


def tally(found: Tally, skipped: int, *, dry_run: bool, as_json: bool) -> Iterator[str]:
    """Bring what a replay did: one JSON object, or the letters that stayed and a sum."""
    if as_json:
        yield json.dumps(
            {
                "dry_run": dry_run,
                "replayed": found.letters,
                "records": found.records,
                "skipped": skipped,
                "refused": found.refused,
                "stopped": found.stopped,
            }
        )
        return
    yield from (f"stays refused: {reason}  {letter_id}" for letter_id, reason in found.refused.items())
    yield (
        f"{'would replay' if dry_run else 'replayed'} {found.letters} letters as {found.records} records; {len(found.refused)} stay refused, "
        f"{skipped} skipped" + ("; stopped before the end, run it again for the rest" if found.stopped else "")
    )


@contextlib.contextmanager
def progress() -> Iterator[topic.Progress]:
    """Show on a terminal's standard error how far the topic is read; elsewhere nothing."""
    console = Console(stderr=True)
    columns = (TextColumn("reading dead letters"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda read, total: bar.update(task, completed=read, total=total)
