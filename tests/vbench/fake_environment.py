"""A scoring environment without what makes it large: a short worker, wheels of a few bytes."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self
from urllib.parse import quote, unquote

from harness.vbench import build, interpreter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

# What the worker does, with as many dimensions as a test needs; it notes each time it is asked.
_WORKER = """
import importlib.metadata, importlib.util, json, pathlib, sys
here = pathlib.Path(__file__).parent
with (here / "asked.txt").open("a") as file:
    file.write(sys.argv[1] + "\\n")
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
if sys.argv[1] == "--check":
    print(json.dumps({"kind": "compat", "name": "measure", "ok": True, "detail": "applied"}))
    for name, detail in (("scene", ""), ("human_action", "No module named 'timm'")):
        ok = not detail
        print(json.dumps({"kind": "dimension", "name": name, "ok": ok, "detail": detail}))
else:
    found = importlib.util.find_spec("vbench")
    info = pathlib.Path(found.origin).with_name("VBench_full_info.json") if found else None
    versions = {name: version(name) for name in ("vbench", "torch", "detectron2")}
    full = str(info) if info and info.is_file() else ""
    print(json.dumps({"versions": versions, "full_info": full, "cuda": False, "problems": []}))
"""
VBENCH_FILES = {"vbench/__init__.py": "", "vbench/VBench_full_info.json": "[]\n"}


def write_worker(folder: Path) -> Path:
    """A package ``vbench_worker``; returns the folder that holds it."""
    package = folder / "vbench_worker"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(_WORKER)
    return folder


def use_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put such a worker and an empty home in place of the real ones."""
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    folder = write_worker(tmp_path / "foreign")
    monkeypatch.setattr(interpreter, "FOREIGN", folder)
    return folder


@contextmanager
def use_index(
    folder: Path, lock: str, monkeypatch: pytest.MonkeyPatch, *, cache: Path | None = None
) -> Iterator[Index]:
    """Let pip see an index of the wheels in ``folder`` alone, and builds a lock of them."""
    path = folder.parent / "lock.txt"
    path.write_text(lock)
    monkeypatch.setattr(build, "LOCK", path)
    monkeypatch.setattr(build, "PYTHON", tuple(sys.version_info[:2]))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    if cache is None:
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    else:
        monkeypatch.setenv("PIP_CACHE_DIR", str(cache))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Index(folder) as served:
        monkeypatch.setenv("PIP_INDEX_URL", served.url)
        yield served


def asked(worker: Path) -> list[str]:
    """What a worker was asked so far, in order."""
    notes = worker / "vbench_worker" / "asked.txt"
    return notes.read_text().split() if notes.is_file() else []


def write_environment(folder: Path, *, vbench: str | None = "0.1.5") -> Path:
    """A virtual environment with a package that calls itself vbench; returns its interpreter."""
    venv = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(venv, check=True)
    if vbench is not None:
        install(folder, "vbench", vbench, VBENCH_FILES)
    return folder / "bin" / "python"


def site_of(environment: Path) -> Path:
    """The environment's folder of packages."""
    return next((environment / "lib").glob("python*/site-packages"))


def install(environment: Path, name: str, version: str, files: dict[str, str]) -> None:
    """Put a package into an environment without pip."""
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    for path, text in (files | {f"{name}-{version}.dist-info/METADATA": metadata}).items():
        target = site_of(environment) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def write_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    """A pure wheel with these files."""
    info = f"{name}-{version}.dist-info"
    held = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [f"{path},{_digest(text)},{len(text)}" for path, text in held.items()]
    held[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""])
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name_inside, text in held.items():
            archive.writestr(name_inside, text)
    return path


def _digest(text: str) -> str:
    found = hashlib.sha256(text.encode()).digest()
    return f"sha256={base64.urlsafe_b64encode(found).decode().rstrip('=')}"


class Index:
    """A package index of the wheels in a folder.

    Args:
        folder: The wheels.

    Attributes:
        stalled: The project whose wheels are asked for but do not come before ``go``.
        waiting: Set when one of them has been asked for.
        go: Set when they may come.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stalled = ""
        self.waiting, self.go = threading.Event(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/simple"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.go.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def page(self, project: str) -> bytes:
        """The wheels of a project, as PEP 503 has it; empty where there is none."""
        start = f"{project.replace('-', '_')}-"
        names = [path.name for path in self.folder.glob(f"{start}*.whl")]
        return "".join(f'<a href="/files/{quote(name)}">{name}</a>\n' for name in names).encode()

    def wheel(self, name: str) -> bytes:
        """A wheel, when it may come."""
        if self.stalled and name.startswith(f"{self.stalled}-"):
            self.waiting.set()
            self.go.wait()
        return (self.folder / name).read_bytes()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                kind, name = unquote(self.path).strip("/").split("/")
                body = index.page(name) if kind == "simple" else index.wheel(name)
                self.send_response(200 if body else 404)
                self.send_header(
                    "Content-Type",
                    "text/html" if kind == "simple" else "application/octet-stream",
                )
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    self.wfile.write(body)
                except (BrokenPipeError, ConnectionResetError):
                    return  # whoever asked was killed by the test

            def log_message(self, *arguments: object) -> None:
                del arguments

        return Handler
