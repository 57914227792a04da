"""One file of a hub repository: in the local cache, asked for, and fetched so that a broken download goes on.

The cache is the hub library's own (``HF_HOME``), in its own layout, so that files are shared with every
other program that uses it; ``HF_ENDPOINT`` names another hub. The library is imported inside functions:
records are read without it. Downloads go through its HTTP layer, but not through its download function,
which begins anew after a break and keeps files whose bytes are not those that were published.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from io import BufferedRandom, FileIO
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from wsi_dino.encoders.hub_refusals import explain_refusal, interrupted
from wsi_dino.errors import HubError, StorageError
from wsi_dino.provenance import as_storage_error, file_sha256

_TRUE = ("1", "true", "yes", "on")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ATTEMPTS = 3
_REPORT_EVERY_S = 10.0


@dataclass(frozen=True)
class HubFile:
    """A file as it is asked of the hub.

    Attributes:
        repo: ``OWNER/NAME``.
        file: path inside the repository.
        revision: commit, tag or branch; None for the newest commit.
        sha256: what it must be, None where that is not known.
    """

    repo: str
    file: str
    revision: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class HubAnswer:
    """What the hub says of a file before it is fetched.

    Attributes:
        url: where its bytes are.
        size_bytes: how many.
        etag: the hub's name for the content; of large files their SHA-256.
        revision: the commit that was meant.
    """

    url: str
    size_bytes: int
    etag: str
    revision: str


class Progress(Protocol):
    """Called with the bytes that are there so far and the bytes there will be."""

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Report."""


_is_forbidden: ContextVar[bool] = ContextVar("_is_forbidden", default=False)


@contextmanager
def without_network() -> Iterator[None]:
    """Forbid the network to what is done inside, as the environment can for a whole command."""
    before = _is_forbidden.set(True)
    try:
        yield
    finally:
        _is_forbidden.reset(before)


def is_offline() -> bool:
    """Return whether the network is forbidden, by the environment or by `without_network`."""
    if _is_forbidden.get():
        return True
    names = ("WSI_DINO_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").strip().lower() in _TRUE for name in names)


def has_token() -> bool:
    """Return whether an access token is set, by variable or by file.

    The library's own `get_token` is not asked: it may renew a token over the network.
    """
    from huggingface_hub import constants

    if any(os.environ.get(name, "").strip() for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")):
        return True
    try:
        return bool(Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8").strip())
    except (OSError, ValueError):
        return False


def cached_file(wanted: HubFile) -> Path | None:
    """Return the file from the local cache, or None; without a revision that of ``main``."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(wanted.repo, wanted.file, revision=wanted.revision or "main")
    return Path(found) if isinstance(found, str) else None


def published_sha256(path: Path) -> str | None:
    """Return the SHA-256 that the hub gave for a file of its cache, or None where it gave none."""
    name = path.resolve().name
    return name if _SHA256.fullmatch(name) else None


def discard_cached(path: Path) -> None:
    """Remove a file from the local cache, so that it is fetched anew."""
    content = path.resolve()
    path.unlink(missing_ok=True)
    content.unlink(missing_ok=True)


def ask_hub(wanted: HubFile) -> HubAnswer:
    """Ask for size, content and commit of a file; a busy hub is asked three times.

    Raises:
        HubError: the network is forbidden or absent, or the hub refuses.
    """
    if is_offline():
        raise explain_refusal(wanted, None, has_token=False)
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(wanted.repo, wanted.file, revision=wanted.revision)
    for attempt in range(_ATTEMPTS):
        try:
            told = get_hf_file_metadata(url)
            break
        except Exception as error:
            refusal = explain_refusal(wanted, error, has_token=has_token())
            if refusal.kind not in ("no-network", "server") or attempt + 1 == _ATTEMPTS:
                raise refusal from error
        time.sleep(2.0**attempt / 2)
    if told.commit_hash is None or told.etag is None or told.size is None:
        raise HubError(
            f"{url} answers, but not as a hub does (commit, content or size are missing). "
            "Check HF_ENDPOINT, proxy and firewall.",
            "server",
        )
    return HubAnswer(told.location, told.size, told.etag, told.commit_hash)


def fetch_file(wanted: HubFile, answer: HubAnswer, progress: Progress | None = None) -> Path:
    """Return the file from the cache after bringing it there.

    What was fetched before a break is kept and completed by the next call, in this process or another;
    of several processes one fetches and the others wait. Bytes enter the cache only when they are
    those that the hub and `wanted` name.

    Raises:
        HubError: the download broke off, other bytes came, or the hub refuses.
        StorageError: the disk is full, or the cache cannot be written.
    """
    from filelock import FileLock
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.file_download import repo_folder_name

    folder, cache = repo_folder_name(repo_id=wanted.repo, repo_type="model"), Path(constants.HF_HUB_CACHE)
    content = cache / folder / "blobs" / answer.etag
    lock = cache / ".locks" / folder / f"{answer.etag}.lock"
    try:
        for place in (content.parent, lock.parent):
            place.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if not content.exists():
                _complete(wanted, answer, content, progress or _Lines(wanted))
        # The content is in its place: this adds the name under which the library finds it.
        return Path(hf_hub_download(wanted.repo, wanted.file, revision=wanted.revision))
    except OSError as error:
        if getattr(error, "response", None) is None and (storage := _storage_error(error, content)):
            raise storage from error
        raise explain_refusal(wanted, error, has_token=has_token()) from error


def _storage_error(error: OSError, path: Path) -> StorageError | None:
    known = as_storage_error(error, path)
    if known is None or "disk is full" in str(known):
        return known
    return StorageError(f"Writing {path}: {error.strerror}. Set HF_HOME to a folder that can be written.")


def _complete(wanted: HubFile, answer: HubAnswer, content: Path, progress: Progress) -> None:
    part = content.with_name(f"{content.name}.incomplete")
    # Not through `write_atomically`, whose temporary file would not outlive a break; the rename is the same.
    with _CountingFile(part, lambda done: progress(done, answer.size_bytes)) as stream:
        stream.seek(0, os.SEEK_END)
        if stream.tell() > answer.size_bytes:
            stream.truncate(0)
            stream.seek(0)
        _require_space(part, answer.size_bytes - stream.tell())
        while stream.tell() < answer.size_bytes:
            before = stream.tell()
            try:
                _receive(wanted, answer, stream, content)
            except HubError as error:  # as long as more comes each time it is worth going on
                if error.kind != "interrupted" or not before < stream.tell() <= answer.size_bytes:
                    raise
        stream.flush()
        os.fsync(stream.fileno())
    _require_published_bytes(wanted, answer, part)
    os.replace(part, content)


def _receive(wanted: HubFile, answer: HubAnswer, stream: _CountingFile, content: Path) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars("huggingface_hub.http_get")  # ours also works where stderr is a file
    try:
        http_get(
            answer.url,
            stream,
            resume_size=stream.tell(),
            headers=_headers(wanted, answer),
            expected_size=answer.size_bytes,
            displayed_filename=wanted.file,
        )
    except Exception as error:
        if isinstance(error, OSError) and as_storage_error(error, content):
            raise
        if getattr(error, "response", None) is not None:
            raise explain_refusal(wanted, error, has_token=has_token()) from error
        raise interrupted(wanted, stream.tell(), answer.size_bytes, error) from error


def _headers(wanted: HubFile, answer: HubAnswer) -> dict[str, str]:
    """Return the headers of a request; the token goes to the hub alone, never to where it keeps large files."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers: dict[str, str] = build_hf_headers()
    if urlsplit(answer.url).netloc != urlsplit(hf_hub_url(wanted.repo, wanted.file)).netloc:
        headers.pop("authorization", None)
    return headers


def _require_space(part: Path, missing_bytes: int) -> None:
    import shutil

    free_bytes = shutil.disk_usage(part.parent).free
    if missing_bytes > free_bytes:
        raise StorageError(
            f"Writing {part}: {missing_bytes / 1e6:.1f} MB are needed, {free_bytes / 1e6:.1f} MB are free. "
            "Free some space, or set HF_HOME to a folder on another disk."
        )


def _require_published_bytes(wanted: HubFile, answer: HubAnswer, part: Path) -> None:
    published = answer.etag if _SHA256.fullmatch(answer.etag) else None
    expected = wanted.sha256 or published
    if expected is None:
        return
    got = file_sha256(part)
    if got == expected:
        return
    part.unlink()
    cause = "were damaged on the way: run the same command again"
    if got == published:
        cause = "are what the hub publishes now, but not what this encoder was tested with: nothing was kept"
    raise HubError(
        f"{wanted.file} of {wanted.repo} has the wrong checksum: expected SHA-256 {expected[:16]}..., "
        f"got {got[:16]}.... The bytes {cause}.",
        "checksum",
    )


class _CountingFile(BufferedRandom):
    """A file opened for completing that reports its length whenever it has grown."""

    def __init__(self, path: Path, report: Callable[[int], None]) -> None:
        super().__init__(FileIO(path, "r+" if path.exists() else "w+"))
        self._report = report

    def write(self, chunk: Any, /) -> int:
        """Write and report."""
        written = super().write(chunk)
        self._report(self.tell())
        return written


class _Lines:
    """A line on stderr every ten seconds."""

    def __init__(self, wanted: HubFile) -> None:
        self._file, self._last = wanted.file, time.monotonic()

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        if time.monotonic() - self._last >= _REPORT_EVERY_S:
            self._last = time.monotonic()
            done = f"{done_bytes / 1e6:.1f} of {total_bytes / 1e6:.1f} MB"
            print(f"  {self._file}: {done}", file=sys.stderr, flush=True)
