"""A hub of the same form as the real one, on this machine: repositories, gates, large files kept elsewhere, breaks."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

ACCEPTED, NOT_ACCEPTED = "hf_accepted", "hf_not_accepted"
_FORBIDDING = ("WSI_DINO_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_BAD_TOKEN = "Invalid credentials in Authorization header"


@dataclass
class Repository:
    """What one repository holds; `commit` is what ``main`` means."""

    files: dict[str, bytes]
    commit: str = "c" * 40
    gated: bool = False


@dataclass
class LocalHub:
    """The hub's content, how it misbehaves, and what it was asked.

    Attributes:
        broken_after: bytes after which a connection for content is cut, for so many requests each.
        damaged: whether the bytes that are sent are not those that were announced.
        status: an error that every request is answered with.
        hold_after: bytes after which content waits until `released` is set.
        asked: method, path, ``Range`` and ``Authorization`` of every request.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    broken_after: list[int] = field(default_factory=list)
    damaged: bool = False
    status: int = 0
    hold_after: int = 0
    released: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, str, str, str]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        """For ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self.port}"

    def content(self, digest: str) -> bytes:
        """Return the file with that SHA-256."""
        files = (content for one in self.repositories.values() for content in one.files.values())
        return next(content for content in files if hashlib.sha256(content).hexdigest() == digest)

    def fetched(self) -> list[tuple[str, str, str, str]]:
        """Return the requests for content."""
        return [request for request in self.asked if request[0] == "GET" and request[1].startswith("/content/")]


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        return

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        authorization, span = self.headers.get("Authorization", ""), self.headers.get("Range", "")
        self.hub.asked.append((self.command, self.path, span, authorization))
        if self.hub.status:
            self._answer(self.hub.status)
        elif self.path.startswith("/content/"):
            self._content(self.path.removeprefix("/content/"), span)
        else:
            self._resolve(authorization.removeprefix("Bearer "))

    def _resolve(self, token: str) -> None:
        owner, name, _, revision, file = unquote(self.path).removeprefix("/").split("/", 4)
        repository = self.hub.repositories.get(f"{owner}/{name}")
        if token and token not in (ACCEPTED, NOT_ACCEPTED):
            return self._answer(401, {"X-Error-Message": _BAD_TOKEN})
        if repository is None:
            return self._answer(404 if token else 401, {"X-Error-Code": "RepoNotFound"})
        if repository.gated and token != ACCEPTED:
            words = f"Access to model {owner}/{name} is restricted. Your request awaits a review."
            return self._answer(403 if token else 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": words})
        if revision not in ("main", repository.commit):
            return self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        commit = {"X-Repo-Commit": repository.commit}
        if file not in repository.files:
            return self._answer(404, commit | {"X-Error-Code": "EntryNotFound"})
        content = repository.files[file]
        digest = hashlib.sha256(content).hexdigest()
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        # Another name of this machine stands for the other host on which the real hub keeps large files.
        return self._answer(302, commit | linked | {"Location": f"http://localhost:{self.hub.port}/content/{digest}"})

    def _content(self, digest: str, span: str) -> None:
        content = self.hub.content(digest)
        if self.hub.damaged:
            content = bytes(byte ^ 1 for byte in content[:64]) + content[64:]
        start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            cut = self.hub.broken_after.pop(0) if self.hub.broken_after else len(content)
            with suppress(ConnectionError):  # who asked may have been killed
                self._send(content[start : start + cut])
            self.close_connection = True

    def _send(self, body: bytes) -> None:
        before = self.hub.hold_after or len(body)
        self.wfile.write(body[:before])
        if body[before:]:
            self.wfile.flush()
            self.hub.released.wait(60)
            self.wfile.write(body[before:])

    def _answer(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": "0", **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()


@contextmanager
def running_hub(**repositories: Repository) -> Iterator[LocalHub]:
    """Serve a hub on a free port."""
    hub = LocalHub(dict(repositories))
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def hub_of_this_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """Serve a hub that this process uses, with an empty cache and no token below `folder`."""
    from huggingface_hub import constants

    with running_hub() as hub:
        form = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": form,
            "HF_HUB_CACHE": str(folder / "hub"),
            "HF_TOKEN_PATH": str(folder / "token"),
            "DOWNLOAD_CHUNK_SIZE": 32_768,  # what is lost at a break
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        for name in (*_FORBIDDING, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WSI_DINO_WEIGHTS_DIR"):
            monkeypatch.delenv(name, raising=False)
        yield hub


def environment_of(hub: LocalHub, home: Path) -> dict[str, str]:
    """Return the environment of a new process that uses `hub`, with its caches in `home`."""
    removed = (*_FORBIDDING, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "WSI_DINO_WEIGHTS_DIR")
    kept = {name: value for name, value in os.environ.items() if name not in removed}
    caches = {"HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache")}
    return kept | caches | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
