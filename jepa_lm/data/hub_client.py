"""Requests to the Hugging Face hub, with limits on the size and time of a response, whoever sends it.

The hub client's own session does the work, with its token, proxies and certificates. Its listing and its
error messages are not used: they read whole responses into memory, whatever their size and duration. Here a
thread reads a response, so that one which trickles in is ended, even within its headers.

huggingface_hub is imported only inside functions: if everything is on disk, it is not needed.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from jepa_lm.utils.errors import UserError
from jepa_lm.utils.quoting import cut, literal, one_line

T = TypeVar("T")

SLOWEST = 1024
"""Bytes per second, over half the timeout, below which a response counts as stalled."""
PATIENCE = 3
"""Number of timeouts that connecting, redirects and headers may take together."""
REDIRECTS = 10
MOST_OF_AN_ERROR = 4096
"""Bytes read from the body of an error response."""
ENVIRONMENT = (
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
"""Variables that the client reads when it is created, in upper or lower case."""


class HubError(Exception):
    """A failed request; the text is written to follow an address in a message.

    Args:
        status: the response's status, if it is an error. broken: the connection failed, not the server.
    """

    def __init__(self, text: str, status: int = 0, broken: bool = False) -> None:
        super().__init__(text)
        self.status, self.broken = status, broken

    @property
    def busy(self) -> bool:
        """True if the server may answer later."""
        return self.status >= 500 or self.status in (408, 429)


class Answer(NamedTuple):
    """A response: status 200, or 206 for a requested rest; length; next page of a listing; body in pieces."""

    status: int
    length: int | None
    next_page: str | None
    body: Iterator[bytes]


@contextmanager
def get(url: str, start: int = 0) -> Iterator[Answer]:
    """Request an address of the hub, from byte `start` on.

    Raises:
        HubError: the request failed, here or while the body is read. UserError: the client cannot be set up.
    """
    session, headers, seconds = _client()
    if start:
        headers["Range"] = f"bytes={start}-"
    answers = _read(session, url, {"headers": headers, "timeout": seconds})
    with closing(_prompt(answers, PATIENCE * seconds)) as items:
        response = next(items)
        body = _steady(items, seconds)
        if response.status_code not in (200, 206):
            raise HubError(_in_words(response, body), response.status_code)
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise HubError(
                f"the response is compressed ({brief(encoding)}), which was not requested"
            )
        part = re.match(r"bytes ([0-9]{1,18})-", response.headers.get("Content-Range", ""))
        if response.status_code == 206 and int(part[1] if part else start) != start:
            raise HubError(f"the response is not the requested part from byte {start} on")
        length = re.fullmatch(r"[0-9]{1,18}", response.headers.get("Content-Length", ""))
        yield Answer(
            response.status_code,
            int(length[0]) if length else None,
            response.links.get("next", {}).get("url"),
            body,
        )


def _client() -> tuple[Any, dict[str, str], float]:
    """Return the session, the headers of a request, and the seconds that a response may pause."""
    try:
        from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
        from huggingface_hub.utils import build_hf_headers, get_session

        # The length of a compressed response would not be the file's, and it could unpack to any size.
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        session = get_session()
    except Exception as error:  # several libraries read the environment, and each raises its own
        raise UserError(_about_environment(error)) from error
    if not all(value.isascii() and value.isprintable() for value in headers.values()):
        raise UserError("data: HF_TOKEN contains characters that no token has; correct or unset it")
    return session, headers, max(0.1, HF_HUB_DOWNLOAD_TIMEOUT)


def _about_environment(error: Exception) -> str:
    found = {
        name: os.environ[name]
        for upper in ENVIRONMENT
        for name in (upper, upper.lower())
        if os.environ.get(name)
    }
    socks = [name for name, value in found.items() if value.lower().startswith("socks")]
    if isinstance(error, ImportError) and socks:
        scheme = literal(found[socks[0]].partition("://")[0])
        return (
            f"data: {socks[0]}={scheme}://...: a SOCKS proxy needs one more package; "
            f"pip install socksio, or unset {socks[0]}"
        )
    names = [*found, *(name for name in os.environ if name.startswith("HF_"))]
    return f"data: the hub's client cannot be set up ({brief(error)}); check {', '.join(names) or 'it'}"


def _read(session: Any, url: str, settings: dict[str, Any]) -> Iterator[Any]:
    """Follow redirects; yield the final response, then its body as it is sent."""
    try:
        request = session.build_request("GET", url, **settings)
        for _ in range(REDIRECTS):
            # Not by the client: it would read the whole body of each redirect.
            with closing(session.send(request, stream=True, follow_redirects=False)) as response:
                if not response.has_redirect_location:
                    yield response
                    yield from response.iter_raw()
                    return
                request = response.next_request  # without the token, if to another server
                if request is None or request.url.scheme not in ("http", "https"):
                    raise HubError("the response redirects to an invalid address")
        raise HubError(f"the request was redirected more than {REDIRECTS} times")
    except HubError:
        raise
    except (http_error(), OSError) as error:
        raise HubError(brief(error), broken=True) from error
    except Exception as error:  # the client's, about invalid addresses and headers
        raise HubError(brief(error)) from error


def _prompt(items: Iterator[T], seconds: float) -> Generator[T]:
    """Yield the same items, made by a thread that is abandoned if one takes longer than `seconds`."""
    made: Queue[tuple[T | None, BaseException | None]] = Queue(maxsize=1)
    gone = Event()

    def make() -> None:
        try:
            for item in items:
                made.put((item, None))
                if gone.is_set():
                    return
            made.put((None, StopIteration()))
        except BaseException as error:
            made.put((None, error))

    Thread(target=make, daemon=True).start()
    try:
        while True:
            item, error = made.get(timeout=seconds)
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    except Empty:
        raise HubError(f"no response within {seconds:g} seconds", broken=True) from None
    finally:
        gone.set()
        with suppress(Empty):  # the thread may be waiting to put another item
            made.get_nowait()


def _steady(pieces: Iterator[bytes], seconds: float) -> Iterator[bytes]:
    """Yield the same pieces, unless they trickle in; the timeout covers a pause before a piece."""
    began, got, count = time.monotonic(), 0, 0
    for piece in pieces:
        got, count = got + len(piece), count + 1
        passed = time.monotonic() - began
        if passed >= seconds / 2:
            if got >= SLOWEST * passed:
                began, got, count = time.monotonic(), 0, 0
            elif count > 1:
                raise HubError(f"less than {SLOWEST} bytes per second", broken=True)
        yield piece


def _in_words(response: Any, body: Iterator[bytes]) -> str:
    """Describe an error response from its status, and its header or the start of its body."""
    said = response.headers.get("X-Error-Message") or response.headers.get("X-Error-Code") or ""
    if not said:
        data = bytearray()
        with suppress(HubError):  # the status is enough
            while len(data) < MOST_OF_AN_ERROR and (piece := next(body, b"")):
                data += piece
        said = data[:MOST_OF_AN_ERROR].decode(errors="replace")
    later = response.headers.get("Retry-After")
    words = [f"{response.status_code} {response.reason_phrase}".strip(), said]
    words += [f"retry after {later} s"] if later else []
    return brief(": ".join(word for word in words if word))


def endpoint() -> str:
    """Return the hub's address, read at call time; huggingface_hub itself reads it only when imported.

    Raises:
        UserError: HF_ENDPOINT is not a valid address.
    """
    address = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    try:
        parts = urlsplit(address)
        right = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        right = False
    if not right:
        raise UserError(
            f"HF_ENDPOINT={told(address)}: not the address of a hub; for example https://huggingface.co"
        )
    return address


def told(url: str) -> str:
    """Return an address for a message, without any password in it."""
    return literal(re.sub(r"//[^/@]*@", "//", url))


def http_error() -> type[Exception]:
    """Return the HTTPError of the hub's client: httpx in huggingface_hub 1.x, httpx2 in 2.x."""
    from huggingface_hub.errors import HfHubHTTPError

    base = HfHubHTTPError.__bases__[0]
    assert issubclass(base, Exception)
    return base


def brief(error: BaseException | str) -> str:
    """Return an error of the hub or its client on one line of bounded length."""
    return cut(literal(one_line(error)), 200)
