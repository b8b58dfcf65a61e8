"""Each way in which a server fails is one error with its address."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from typing import Any

import pytest
from stand_in import serving

from preftune import signals
from preftune.errors import UserError
from preftune.rollout.web import Api, in_parallel


def get(url: str, limit: float = 5) -> dict[str, Any]:
    return Api(url, "rollout.server", "secret", limit).ask_json("/x", {"a": "\u00e9"})


def test_json_goes_there_and_back() -> None:
    with serving(lambda path, body: (200, {"path": path, "body": body})) as server:
        assert get(server.url) == get(server.url + "/v1/") == {"path": "/x", "body": {"a": "\u00e9"}}
        assert Api(server.url, "l", "", 5).ask("/y", None) == '{"path": "/y", "body": null}'
        assert [asked.key for asked in server.asked] == ["Bearer secret", "Bearer secret", ""]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, {"error": {"message": "too\nlong."}}, "answers 400: too long."),
        (404, {"detail": "Not Found"}, "answers 404: Not Found."),
        (500, "<html>" + "x" * 5000, "answers 500: <html>xxx"),
        (503, b"", "answers 503: nothing."),
        (302, "", "answers 302"),
        (200, "<html>", "is no JSON object: '<html>'"),
        (200, [1], "is no JSON object"),
        (200, "[" * 100_000, "is no JSON object"),
        (200, b"\xff\xfe", "something that is no text"),
        (299, "{}", "breaks off: IncompleteRead"),
    ],
)
def test_answers_that_are_none(status: int, body: object, message: str) -> None:
    with serving(lambda path, _: (status, body)) as server, pytest.raises(UserError) as caught:
        get(server.url)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"rollout.server: {server.url}/x ")
    assert len(str(caught.value)) < 500
    assert "secret" not in str(caught.value)


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match=r"no server answers at .*: Connection refused\. Start it"):
        get(url)
    with pytest.raises(UserError, match=r"no server answers at "):
        get("http://no-such-host.invalid")


@pytest.mark.parametrize("url", ["http://[::1", "http://host:99999999", "http://host:x", "http://\u00e9..b/", "x"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UserError, match=r"is no address of a server|no server answers"):
        get(url)


def test_a_server_that_is_slow_or_sends_drop_by_drop() -> None:
    def slow(path: str, body: object) -> tuple[int, object]:
        time.sleep(1)
        return 200, {}

    with serving(slow) as server, pytest.raises(UserError, match=r"took longer than 0.2 seconds"):
        get(server.url, 0.2)

    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(100):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return
                time.sleep(0.05)

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    start = time.monotonic()
    with pytest.raises(UserError, match=r"took longer than 0.3 seconds"):
        get(f"http://127.0.0.1:{listener.getsockname()[1]}", 0.3)
    assert time.monotonic() - start < 2
    listener.close()
    thread.join(7)


def test_a_proxy_of_the_environment_is_not_asked_for_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(lambda path, body: (200, {})) as server:
        assert get(server.url) == {}


def test_work_side_by_side_keeps_its_order() -> None:
    def work(number: int) -> int:
        time.sleep(0.02 * (number % 3))
        return number**2

    assert in_parallel(work, range(20), 7) == [number**2 for number in range(20)]
    assert in_parallel(work, [], 7) == []


def test_an_error_or_a_stop_waits_for_nothing() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise UserError("three")
        time.sleep(3)
        return number

    start = time.monotonic()
    with pytest.raises(UserError, match="three"):
        in_parallel(work, range(8), 8)
    assert time.monotonic() - start < 1
    with signals.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(signals.Stopped):
            in_parallel(lambda _: time.sleep(3), range(4), 2)
    assert time.monotonic() - start < 2
