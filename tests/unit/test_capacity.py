"""The arithmetic of queues and windows, and that what runs is configured by it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rayapp import capacity
from rayapp.capacity import Load
from rayapp.config import MqttSettings
from rayapp.stack.mosquitto import render_configuration

loads = st.builds(
    Load,
    messages_per_s=st.floats(0.1, 1e6),
    outage_s=st.floats(1, 86_400),
    slots=st.integers(1, 64),
    message_bytes=st.integers(1, 131_072),
)


def test_the_docstring_is_computed() -> None:
    """The figures that the module tells are the ones it gives."""
    load = Load()
    window = capacity.receive_maximum(load)

    assert 3_000_000 == capacity.max_queued_messages(load)
    assert 3_360_000_000 == capacity.queue_memory_bytes(load)
    assert 2_532_000_000 == capacity.queue_disk_bytes(load)
    assert (6_000, 12_000) == (window, capacity.held_max_messages(window))
    assert 66_720_000 == capacity.held_max_bytes(load, window)
    assert 4_898_880_000_000 == capacity.retention_bytes(load, 7 * 86_400, 6)


@given(loads)
def test_queues_hold_the_whole_outage(load: Load) -> None:
    """All slots' queues together hold every message of the outage, however many slots share it."""
    assert load.slots * capacity.max_queued_messages(load) >= load.messages_per_s * load.outage_s


@given(loads)
def test_window_is_one_that_mqtt_can_say(load: Load) -> None:
    """The window is at least one message and at most what 16 bits hold; a slot may hold more than its window."""
    window = capacity.receive_maximum(load)
    assert 1 <= window <= 65_535
    assert capacity.held_max_messages(window) > window
    assert capacity.held_max_bytes(load, window) > window * load.message_bytes


@given(loads, st.integers(2, 64))
def test_more_slots_need_no_more_memory_but_for_rounding(load: Load, slots: int) -> None:
    """The share shrinks as slots grow: the total grows by less than one message a slot."""
    one = capacity.max_queued_messages(Load(load.messages_per_s, load.outage_s, 1))
    many = slots * capacity.max_queued_messages(Load(load.messages_per_s, load.outage_s, slots))
    assert one <= many < one + slots + 1


@pytest.mark.parametrize("part", ["messages_per_s", "outage_s", "slots", "message_bytes"])
def test_a_load_without_a_part_is_refused(part: str) -> None:
    """Zero would derive a queue of nothing, which Mosquitto reads as unlimited."""
    with pytest.raises(ValueError, match="no zero"):
        Load(**{part: 0})


def test_broker_and_settings_are_derived(tmp_path: Path) -> None:
    """Mosquitto's queue and the settings' windows come from here and from nowhere else."""
    assert f"max_queued_messages {capacity.max_queued_messages(Load())}" in render_configuration(1883, tmp_path).splitlines()
    settings = MqttSettings()
    assert Load() == settings.load
    assert capacity.receive_maximum(Load()) == settings.window
    assert capacity.held_max_messages(settings.window) == settings.held_messages
    assert capacity.held_max_bytes(Load(), settings.window) == settings.held_bytes


def test_who_says_the_load_gets_all_limits() -> None:
    """Two figures that a person knows, rate and outage, are enough; a session that expires within the outage is refused."""
    settings = MqttSettings(messages_per_s=500, longest_outage_s=3_600)
    assert (300, 600) == (settings.window, settings.held_messages)
    assert 1_800_000 == capacity.max_queued_messages(settings.load)
    with pytest.raises(ValidationError, match="longest_outage_s"):
        MqttSettings(longest_outage_s=3_600, session_expiry_s=3_599)


def test_held_limits_follow_the_window() -> None:
    """Who changes the window only gets limits that fit it; who sets a limit below it is refused."""
    assert 20 == MqttSettings(receive_maximum=10).held_messages
    with pytest.raises(ValidationError, match="held_max_messages"):
        MqttSettings(receive_maximum=10, held_max_messages=9)
