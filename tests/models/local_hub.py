"""A hub for one test: serves a folder of this machine the way the client asks for a repository."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from pathlib import Path


class LocalHub:
    """One repository at one commit.

    ``asked`` keeps the paths that were requested, ``whole`` the files that were
    sent from end to end.
    """

    def __init__(self, repo: str, folder: Path, revision: str) -> None:
        self.repo, self.folder, self.revision = repo, folder, revision
        self.asked: list[str] = []
        self.whole: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> LocalHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(request.path).partition("?")[0]
        self.asked.append(path)
        api, files = f"/api/models/{self.repo}", f"/{self.repo}/resolve/{self.revision}/"
        path = path.replace("/resolve/main/", f"/resolve/{self.revision}/")
        names = sorted(
            p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file()
        )
        if path in (api, f"{api}/revision/{self.revision}"):
            facts = {
                "id": self.repo, "sha": self.revision, "tags": [],
                "siblings": [{"rfilename": n} for n in names],
            }  # fmt: skip
            return self._send(request, json.dumps(facts).encode(), "application/json", body)
        if path.startswith(f"{api}/tree/{self.revision}"):
            rows = [
                {
                    "type": "file",
                    "path": n,
                    "oid": "0" * 40,
                    "size": (self.folder / n).stat().st_size,
                }
                for n in names
            ]
            return self._send(request, json.dumps(rows).encode(), "application/json", body)
        if path.startswith(files) and path.removeprefix(files) in names:
            content = (self.folder / path.removeprefix(files)).read_bytes()
            if body and not request.headers.get("Range"):
                self.whole.append(path.removeprefix(files))
            return self._send(request, content, "application/octet-stream", body)
        request.send_response(404)
        known = path.startswith((api, f"/{self.repo}/"))
        request.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return None

    def _send(self, request: BaseHTTPRequestHandler, content: bytes, kind: str, body: bool) -> None:
        total = len(content)
        asked = request.headers.get("Range", "")
        if asked.startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            content = content[int(first) : int(last) + 1 if last else None]
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        else:
            request.send_response(200)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        request.send_header("X-Repo-Commit", self.revision)
        request.end_headers()
        if body:
            request.wfile.write(content)
