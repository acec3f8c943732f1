"""Settings: which source wins, and what a person is told about a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayapp.config import load_settings, read_secret
from rayapp.errors import ConfigurationError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A YAML file that sets three keys."""
    path = tmp_path / "rayapp.yaml"
    path.write_text("kafka:\n  topic: from-file\n  group: from-file\n  partitions: 3\n", encoding="utf-8")
    return path


def test_defaults_are_the_documents() -> None:
    """Without any source the topics, the group and the partitions are the documented ones."""
    kafka = load_settings().kafka

    assert (kafka.topic, kafka.dead_letter_topic, kafka.group, kafka.partitions) == (
        "iot-sensor-data",
        "iot-sensor-data-dlq",
        "iot-data-consumer",
        6,
    )


def test_later_sources_win_key_by_key(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags win over the environment, the environment over the file, the file over defaults, each for its own keys only."""
    monkeypatch.setenv("RUUVI_KAFKA__GROUP", "from-environment")
    monkeypatch.setenv("RUUVI_KAFKA__PARTITIONS", "4")
    kafka = load_settings(file, {"kafka": {"partitions": 5}}).kafka

    assert (kafka.topic, kafka.group, kafka.partitions, kafka.linger_ms) == ("from-file", "from-environment", 5, 10)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kafka: {topics: x}", ["kafka.topics", "unknown key"]),
        ("nonsense: 1", ["nonsense", "unknown key"]),
        ("kafka: {partitions: 0}", ["kafka.partitions = 0", "greater than or equal to 1"]),
        ("kafka: {partitions: many}", ["kafka.partitions = 'many'", "integer"]),
        ("pipeline: Ruuvi!", ["pipeline = 'Ruuvi!'", "pattern"]),
        ("place: {latitude: 91}", ["place.latitude = 91", "less than or equal to 90"]),
        ("mqtt: {receive_maximum: 65536}", ["mqtt.receive_maximum = 65536"]),
        ("kafka: [1, 2", ["cannot be read"]),
    ],
)
def test_wrong_setting_is_named_with_its_rule(tmp_path: Path, text: str, words: list[str]) -> None:
    """A message names the key, the value and the rule."""
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError) as refused:
        load_settings(path)
    assert [word for word in words if word not in str(refused.value)] == []


def test_all_wrong_settings_are_named_at_once(tmp_path: Path) -> None:
    """Two mistakes are one message."""
    path = tmp_path / "wrong.yaml"
    path.write_text("kafka: {partitions: 0}\nfleet: {ingest: 0}\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"(?s)kafka\.partitions.*fleet\.ingest"):
        load_settings(path)


def test_missing_file_is_said(tmp_path: Path) -> None:
    """A path that does not exist is an error, not defaults."""
    with pytest.raises(ConfigurationError, match="does not exist"):
        load_settings(tmp_path / "none.yaml")


def test_settings_do_not_change() -> None:
    """Validated settings travel through actors; nobody may alter them."""
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.kafka.topic = "other"


def test_secret_is_read_anew_at_each_use(tmp_path: Path) -> None:
    """A rotated password file is seen without a restart, its newline is no part of the secret."""
    path = tmp_path / "password"
    path.write_text("one\n", encoding="utf-8")

    assert read_secret(path, "what") == "one"
    path.write_text("two", encoding="utf-8")
    assert read_secret(path, "what") == "two"


def test_missing_secret_names_its_setting(tmp_path: Path) -> None:
    """No path and an unreadable path both name the setting to mend."""
    for path in (None, tmp_path / "none"):
        with pytest.raises(ConfigurationError, match=r"database\.writer_password_file"):
            read_secret(path, "database.writer_password_file")
