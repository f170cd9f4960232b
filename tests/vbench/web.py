"""A host on this machine that behaves as badly as hosts do."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from harness.vbench import download


@dataclass
class Page:
    """One address.

    Attributes:
        body: Content.
        ranges: Whether a part may be asked for.
        etag: Entity tag; None sends none.
        drops: So many answers break off in the middle.
        keeps: Bytes after which they do.
        refusals: Codes of the first answers.
        length: Content-Length when it is a lie; -1 sends none.
        kind: Content-Type.
        stalls: So many answers stop coming in the middle, the connection open.
        goes_to: Address of a redirect.
        headers: More of them.
    """

    body: bytes = b""
    ranges: bool = True
    etag: str | None = '"one"'
    drops: int = 0
    keeps: int = 0
    refusals: list[int] = field(default_factory=list)
    length: int = 0
    kind: str = "application/octet-stream"
    stalls: int = 0
    goes_to: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class Web:
    """Pages by path, and what was asked of them."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.stalled, self.closing = threading.Event(), threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    web.answer(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}{path}"

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked[handler.path] += 1
        page = self.pages.get(handler.path)
        if page is None:
            handler.send_error(404)
        elif page.refusals:
            handler.send_error(page.refusals.pop(0))
        elif page.goes_to:
            handler.send_response(302)
            handler.send_header("Location", self.url(page.goes_to))
            self._end(handler, page)
        else:
            self._send(handler, page)

    def _send(self, handler: BaseHTTPRequestHandler, page: Page) -> None:
        start, asked = 0, handler.headers.get("Range", "")
        if asked:
            self.ranges.append(asked)
        if asked and page.ranges and handler.headers.get("If-Range") in (None, page.etag):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(page.body):
                handler.send_error(416)
                return
            handler.send_response(206)
            whole = page.length or len(page.body)
            handler.send_header("Content-Range", f"bytes {start}-{len(page.body) - 1}/{whole}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Type", page.kind)
        if page.length >= 0:
            handler.send_header("Content-Length", str((page.length or len(page.body)) - start))
        if page.etag is not None:
            handler.send_header("ETag", page.etag)
        self._end(handler, page)
        body = page.body[start:]
        if page.drops:
            page.drops -= 1
            body = body[: page.keeps or len(body) // 2]
        stalls = page.stalls > 0
        if stalls:
            page.stalls -= 1
            body = body[: len(body) // 2]
        handler.wfile.write(body)
        self.sent[handler.path] += len(body)
        if stalls:
            self.stalled.set()
            self.closing.wait(30.0)

    def _end(self, handler: BaseHTTPRequestHandler, page: Page) -> None:
        for name, value in page.headers.items():
            handler.send_header(name, value)
        handler.end_headers()


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    monkeypatch.setattr(download, "TIMEOUT_S", 5.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    host = Web()
    yield host
    host.close()
