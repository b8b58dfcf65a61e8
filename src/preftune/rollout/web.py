"""Requests to a server that the user named: JSON over HTTP, each failure one error that says what to look at.

No redirect is followed, so that what is sent goes nowhere else. Held by tests/rollout/test_web.py.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

from preftune import signals
from preftune.errors import LONGEST, UserError

T = TypeVar("T")
R = TypeVar("R")
GLANCE = 0.05  # seconds between looks at whether the run is asked to stop
CHUNK = 2**16
LARGEST = 2**30  # bytes of an answer


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


@dataclass(frozen=True)
class Api:
    """A server with OpenAI's paths. url: with or without /v1; location: the key that names it; key: sent as a bearer
    token; time_limit: seconds for all of an answer."""

    url: str
    location: str
    key: str
    time_limit: float

    @property
    def root(self) -> str:
        """Its address, without /v1."""
        return self.url.rstrip("/").removesuffix("/v1")

    def error(self, message: str, hint: str = "") -> UserError:
        """An error with the key that names the server."""
        return UserError(message, location=self.location, hint=hint)

    def ask(self, path: str, body: Mapping[str, object] | None, hint: str = "") -> str:
        """The text that it answers to a POST of JSON, or to a GET where there is no body.

        hint: what to do where it refuses. Raises UserError.
        """
        url = self.root + path
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        data = None if body is None else json.dumps(body).encode()
        deadline = time.monotonic() + self.time_limit
        late = f"{url} took longer than {self.time_limit:g} seconds."
        try:
            request = urllib.request.Request(url, data, headers)
            direct = [urllib.request.ProxyHandler({})] if _is_loopback(url) else []
            opener = urllib.request.build_opener(_NoRedirect, *direct)
            with opener.open(request, timeout=self.time_limit) as response:
                return _body(response, deadline).decode()
        except urllib.error.HTTPError as error:
            with error:
                said = _message(error.read(CHUNK))
            raise self.error(f"{url} answers {error.code}: {said}", hint) from error
        except TimeoutError as error:
            raise self.error(late) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise self.error(late) from error
            why = getattr(error.reason, "strerror", None) or str(error.reason)
            raise self.error(f"no server answers at {url}: {why}.", "Start it, or mend the address.") from error
        except UnicodeDecodeError as error:
            raise self.error(f"{url} answers with something that is no text.") from error
        except (http.client.InvalidURL, ValueError, OverflowError) as error:
            raise self.error(f"{url} is no address of a server.") from error
        except (http.client.HTTPException, OSError) as error:
            raise self.error(f"{url} breaks off: {type(error).__name__}.", "Look at the server's own log.") from error

    def ask_json(self, path: str, body: Mapping[str, object] | None) -> dict[str, Any]:
        """The object that it answers. Raises UserError."""
        text = self.ask(path, body)
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            message = f"{self.root + path} answers with something that is no JSON object: {text[:40]!r}."
            raise self.error(message, "Is it a server of this kind?")
        return answer

    def models(self) -> list[str]:
        """Names of its models, and of the adapters that it has loaded. Raises UserError."""
        listed = self.ask_json("/v1/models", None).get("data")
        return [str(entry.get("id")) for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


def in_parallel(work: Callable[[T], R], items: Sequence[T], at_once: int) -> list[R]:
    """What `work` returns for each item, in their order; at most `at_once` are worked on at the same time.

    Raises what one of them raises, or Stopped, and waits for no other then: their threads are left behind.
    """
    numbers, results, errors = iter(range(len(items))), dict[int, R](), list[BaseException]()
    lock = threading.Lock()

    def run() -> None:
        while not errors:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                results[number] = work(items[number])
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(at_once, len(items)))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive() and not errors:
                thread.join(GLANCE)
                signals.check()
    except BaseException as error:
        errors.append(error)
        raise
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(items))]


def _body(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """All of it. Raises TimeoutError for a server that sends it drop by drop."""
    parts, size = [], 0
    while part := response.read1(CHUNK):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > LARGEST:
            raise http.client.HTTPException("too long")
    if response.length:  # what it promised and did not send
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)


def _message(body: bytes) -> str:
    """What an error's body says, in one line: OpenAI's `error.message`, or its text."""
    text = body.decode(errors="replace")
    try:
        content = json.loads(text)
        inner = content.get("error", content)
        text = str(inner.get("message") or inner.get("detail") or text) if isinstance(inner, dict) else str(inner)
    except (ValueError, AttributeError, RecursionError):
        pass
    line = " ".join(text.split())[:LONGEST].rstrip(".")
    return f"{line or 'nothing'}."


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
