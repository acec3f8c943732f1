"""Whom the keeper's search for orphans leaves alone."""

from __future__ import annotations

import subprocess

import pytest

from rayapp.stack import keeper


@pytest.mark.parametrize(("own_session", "ours"), [(False, True), (True, False)])
def test_a_question_of_ours_is_no_orphan_and_a_servers_child_is(own_session: bool, ours: bool) -> None:
    """psql is started in the keeper's session and waited for; what descends from a server has a session of its server's."""
    with subprocess.Popen(["sleep", "30"], start_new_session=own_session) as child:
        try:
            assert ours is keeper._is_our_own(child.pid)
        finally:
            child.kill()


def test_a_child_that_is_gone_is_left_alone() -> None:
    """Between the look and the question it may have ended, and its number may be another's soon."""
    with subprocess.Popen(["true"]) as child:
        child.wait()
    assert keeper._is_our_own(child.pid)
