"""Folders of an object store (``s3://BUCKET/FOLDER`` and all that fsspec knows) as local ones, and back.

Files are fetched whole, under a temporary name, checked, and kept; what is kept and unchanged is not fetched again.
Who may read is the environment's business alone (``AWS_...``, ``~/.aws``); nothing about it is stored or printed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_dino.errors import ConfigError, StorageError, WsiDinoError
from wsi_dino.provenance import write_atomically, write_json_atomically

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}(.+)")  # pathlib makes one slash of two
_PLAIN_MD5 = re.compile(r"[0-9a-f]{32}")
_AT_ONCE = 8
_LIST = ".remote.json"


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` names a place in an object store, also after a detour over `Path`.

    Examples:
        >>> is_remote(Path("s3://bucket/slides")), is_remote("/data/slides"), is_remote("C:/slides")
        (True, False, False)
    """
    return _URL.fullmatch(os.fspath(path)) is not None


def as_url(path: str | os.PathLike[str]) -> str:
    """Return the address with its two slashes.

    Examples:
        >>> as_url(Path("s3://bucket/slides"))
        's3://bucket/slides'
    """
    match = _URL.fullmatch(os.fspath(path))
    return f"{match[1]}://{match[2].strip('/')}" if match else os.fspath(path)


def cache_folder(url: str) -> Path:
    """Return where the copy of `url` is kept on this machine: below ``WSI_DINO_CACHE``, else the user's cache."""
    base = os.environ.get("WSI_DINO_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    return Path(base) / "wsi-dino" / "remote" / name / url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class _Entry:
    """A file of the store: its place below the folder, size, and a mark that changes with its content."""

    name: str
    path: str
    n_bytes: int
    mark: str


class RemoteFolder:
    """A folder (or one file) of an object store.

    Args:
        url: its address.

    Raises:
        ConfigError: fsspec or the store's package is missing.
    """

    def __init__(self, url: str) -> None:
        self.url = as_url(url)
        self._files, self._root = _file_system(self.url)

    def fetch(self, folder: Path) -> Path:
        """Make `folder` hold what is in the store, and return it (or the one file that the address names).

        Args:
            folder: local; files that the store has not are left there.

        Raises:
            ConfigError: there is nothing at the address.
            StorageError: a file is not as the store says it is, or the disk is full.
        """
        entries = self._list()
        known = _read_list(folder)
        lacking = [entry for entry in entries if not _is_there(folder, entry, known)]
        with ThreadPoolExecutor(_AT_ONCE, "fetch") as pool:
            for entry in pool.map(lambda entry: self._fetch_one(folder, entry), lacking):
                known[entry.name] = [entry.n_bytes, entry.mark, (folder / entry.name).stat().st_mtime_ns]
        if lacking:
            write_json_atomically(folder / _LIST, known)
        is_file = [entry.path for entry in entries] == [self._root]
        return folder / entries[0].name if is_file else folder

    def exists(self) -> bool:
        """Return whether anything is there.

        Raises:
            ConfigError: the store does not answer, or not to whom the environment names.
        """
        with _store_errors(f"Looking into {self.url}"):
            return bool(self._files.exists(self._root))

    def _list(self) -> list[_Entry]:
        found: Mapping[str, Mapping[str, Any]] = {}
        with _store_errors(f"Looking into {self.url}"), suppress(FileNotFoundError):
            found = self._files.find(self._root, detail=True)
        entries = [self._entry(path, facts) for path, facts in sorted(found.items()) if not path.endswith("/")]
        if not entries:
            raise ConfigError(f"Looking into {self.url}: there is nothing.")
        return entries

    def _entry(self, path: str, facts: Mapping[str, Any]) -> _Entry:
        name = path.rsplit("/", 1)[-1] if path == self._root else path.removeprefix(self._root).lstrip("/")
        if ".." in name.split("/") or name.startswith("/"):
            raise ConfigError(f"Looking into {self.url}: the name {name!r} leaves its folder.")
        mark = str(facts.get("ETag") or facts.get("etag") or facts.get("mtime") or facts.get("LastModified") or "")
        return _Entry(name, path, int(facts.get("size") or 0), mark.strip('"'))

    def _fetch_one(self, folder: Path, entry: _Entry) -> _Entry:
        with write_atomically(folder / entry.name) as temporary:
            with _store_errors(f"Copying {entry.name} of {self.url}", "The same command carries on."):
                self._files.get_file(entry.path, str(temporary))
            _check(temporary, entry, self.url)
        return entry

    def upload(self, folder: Path, skip: Iterable[str] = ()) -> int:
        """Put what was made or changed in `folder` since `fetch` into the store; return how many files.

        A store shows a file when all of it has arrived. Tables and reports at the top go last, so that who sees them
        finds what they speak of.

        Args:
            folder: local.
            skip: names, and folders ending in ``/``, that stay here.

        Raises:
            ConfigError: the store does not answer, or does not take the files.
        """
        there = {entry.name: entry for entry in self._list()} if self.exists() else {}
        left_out, known = tuple(skip), _read_list(folder)
        names = [
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and not path.name.endswith(".tmp") and path.name != _LIST
        ]
        own = [name for name in names if not name.startswith(left_out) and not _is_as_fetched(folder, name, known)]
        changed = [name for name in own if not _is_same(folder / name, there.get(name))]
        inner, outer = ([n for n in changed if ("/" not in n) == top] for top in (False, True))
        kept = f"All of it is in {folder}: the same command sends it again."
        with ThreadPoolExecutor(_AT_ONCE, "upload") as pool, _store_errors(f"Writing to {self.url}", kept):
            for part in (inner, outer):
                list(pool.map(lambda name: self._files.put_file(str(folder / name), f"{self._root}/{name}"), part))
        self._files.invalidate_cache()
        return len(changed)


@contextmanager
def _store_errors(doing: str, then: str = "") -> Iterator[None]:
    """Tell what a store's client raises, of whatever kind, as an error of ours."""
    try:
        yield
    except WsiDinoError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise  # of the disk here
        raise ConfigError(
            f"{doing}: {type(error).__name__}: {error}. Address and credentials come from the environment "
            f"(AWS_ENDPOINT_URL, AWS_PROFILE, AWS_ACCESS_KEY_ID ...). {then}".rstrip()
        ) from error


def _file_system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ConfigError(f"Reading {url} needs the package fsspec: install wsi_dino with the extra `s3`.") from error
    try:
        files, root = url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"Reading {url}: {error}. For s3:// install wsi_dino with the extra `s3`.") from error
    return files, str(root).rstrip("/")


def _check(path: Path, entry: _Entry, url: str) -> None:
    if path.stat().st_size != entry.n_bytes:
        raise StorageError(
            f"Fetching {entry.name} of {url}: {path.stat().st_size} bytes came, expected {entry.n_bytes}. Try again."
        )
    if _PLAIN_MD5.fullmatch(entry.mark) and _md5(path) != entry.mark:
        raise StorageError(f"Fetching {entry.name} of {url}: its content is not what the store says. Try again.")


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _is_same(path: Path, entry: _Entry | None) -> bool:
    """Whether the store has this content; files in parts have no plain sum there and are compared by size alone."""
    if entry is None or path.stat().st_size != entry.n_bytes:
        return False
    return _PLAIN_MD5.fullmatch(entry.mark) is not None and _md5(path) == entry.mark


def _is_there(folder: Path, entry: _Entry, known: Mapping[str, Any]) -> bool:
    path = folder / entry.name
    if not path.is_file() or path.stat().st_size != entry.n_bytes:
        return False
    return known.get(entry.name, [])[:2] == [entry.n_bytes, entry.mark] or _is_same(path, entry)


def _is_as_fetched(folder: Path, name: str, known: Mapping[str, Any]) -> bool:
    stat = (folder / name).stat()
    fetched = known.get(name, [])
    return bool(fetched) and [fetched[0], fetched[2]] == [stat.st_size, stat.st_mtime_ns]


def _read_list(folder: Path) -> dict[str, Any]:
    try:
        known = json.loads((folder / _LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
