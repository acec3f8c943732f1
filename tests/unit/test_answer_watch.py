"""The watch that ends waits without an answer, on real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from builders import eventually

from actors.adapters.answer_watch import AnswerWatch, WatchedSocket


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    yield left, right
    left.close()
    right.close()


def test_late_answer_ends_the_wait(pair: tuple[socket.socket, socket.socket]) -> None:
    """A read that would last for ever fails, and says after how long."""
    watched = WatchedSocket(AnswerWatch(), pair[0].fileno(), 0.1)

    def wait() -> None:
        with watched.waiting():
            if not pair[0].recv(1):
                raise ConnectionError("closed")

    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        wait()
    watched.close()


def test_full_send_buffer_ends_too(pair: tuple[socket.socket, socket.socket]) -> None:
    """A peer that reads nothing blocks the sender no longer than that."""
    watched = WatchedSocket(AnswerWatch(), pair[0].fileno(), 0.1)

    def send() -> None:
        with watched.waiting():
            pair[0].sendall(b"x" * 50_000_000)

    with pytest.raises(TimeoutError):
        send()
    watched.close()


def test_answer_in_time_leaves_the_socket_alone(pair: tuple[socket.socket, socket.socket]) -> None:
    """Nothing is shut down between statements, however long they are apart."""
    watch = AnswerWatch()
    watched = WatchedSocket(watch, pair[0].fileno(), 10.0)
    with watched.waiting():
        pair[1].send(b"a")
        assert b"a" == pair[0].recv(1)
    watch.shut_down_due(1e12)
    pair[1].send(b"b")

    assert b"b" == pair[0].recv(1)
    watched.close()


def test_error_of_the_statement_stays_what_it_is(pair: tuple[socket.socket, socket.socket]) -> None:
    """Only a shut down socket makes a time-out of an error."""
    watched = WatchedSocket(AnswerWatch(), pair[0].fileno(), 10.0)
    with pytest.raises(KeyError), watched.waiting():
        raise KeyError("k")
    watched.close()


def test_number_used_again_is_not_shut_down(pair: tuple[socket.socket, socket.socket]) -> None:
    """A connection that was closed while it waited does not take another one down that got its descriptor's number."""
    watch = AnswerWatch()
    watched = WatchedSocket(watch, pair[0].fileno(), 0.0)
    with watched.waiting():
        watched.close()
        left, right = socket.socketpair()
        watch.shut_down_due(1e12)
        right.send(b"alive")
        assert b"alive" == left.recv(5)
    left.close()
    right.close()


def test_closed_twice_and_used_after(pair: tuple[socket.socket, socket.socket]) -> None:
    """A closed connection's calls fail by themselves; the watch stands aside."""
    watched = WatchedSocket(AnswerWatch(), pair[0].fileno(), 0.0)
    watched.close()
    watched.close()
    with watched.waiting():
        pass
    pair[1].send(b"a")
    assert b"a" == pair[0].recv(1)


def test_one_thread_serves_all(pair: tuple[socket.socket, socket.socket]) -> None:
    """However many connections and statements, there is one thread more."""
    watch, before = AnswerWatch(), threading.active_count()
    for _ in range(5):
        watched = WatchedSocket(watch, pair[0].fileno(), 10.0)
        with watched.waiting():
            pass
        watched.close()

    assert eventually(lambda: before + 1 == threading.active_count(), 2.0)
