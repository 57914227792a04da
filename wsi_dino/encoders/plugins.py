"""Encoders that users add: a Python file named in wsi-dino.yaml, or an entry point of an installed package.

A plug-in is a module like those of ``encoders/families``: ``RECORDS`` and ``build(record)``. Loading one runs
its code, with all the rights of the user. One that breaks is left out with a warning; nothing else is harmed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from wsi_dino.encoders.plugin_guard import guard_functions, in_words
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.errors import WsiDinoError

ENTRY_POINT_GROUP = "wsi_dino.encoders"
# Words of the command line that come where the name of an encoder may stand.
_RESERVED = ("check",)
_NAME_IN_SOURCE = re.compile(r"""\bname\s*=\s*["']([^"'\n]+)["']""")


@dataclass(frozen=True)
class Plugin:
    """A plug-in that works.

    Attributes:
        name: stem of the file, or name of the entry point.
        origin: the file or the entry point, for messages.
        module: what was imported; its functions turn the errors of its author into an `EncoderError`.
        sha256: of its source: part of every record, so that a changed plug-in serves no old features.
        records: of its encoders.
    """

    name: str
    origin: str
    module: ModuleType
    sha256: str
    records: tuple[EncoderSpec, ...] = ()

    @property
    def family(self) -> str:
        """Family of its records; no module of ``encoders/families`` can have that name."""
        return f"plugin:{self.name}"

    @property
    def prefix(self) -> str | None:
        """What names of unlisted encoders start with, if it makes records of such."""
        return getattr(self.module, "NAME_PREFIX", None)

    def signed(self, record: EncoderSpec) -> EncoderSpec:
        """Return `record` with the plug-in's family and hash in it."""
        return record.model_copy(update={"family": self.family, "plugin_sha256": self.sha256})


@dataclass(frozen=True)
class BrokenPlugin:
    """A plug-in that was left out.

    Attributes:
        name, origin: as of `Plugin`.
        problem: what is wrong with it.
        claims: names of encoders that its source seems to define.
    """

    name: str
    origin: str
    problem: str
    claims: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """What is wrong, where, in one line."""
        return f"The encoder plug-in {self.name} ({self.origin}) is left out: {self.problem}"


@dataclass(frozen=True)
class Taken:
    """Names that a plug-in may not use, and who has them."""

    names: dict[str, str]
    prefixes: dict[str, str]


class _Unfit(Exception):
    """The plug-in is not what a plug-in must be; the message says why."""


_files: tuple[Path, ...] = ()
_found: tuple[tuple[Plugin, ...], tuple[BrokenPlugin, ...]] | None = None


def use_plugin_files(paths: Iterable[Path]) -> None:
    """Take encoders from these files (and from entry points) from now on; they are loaded when first needed.

    The command line calls it with the paths of wsi-dino.yaml; a program calls it itself.

    Examples:
        >>> use_plugin_files([])
    """
    global _files, _found
    _files, _found = tuple(paths), None


def find_plugins(taken: Taken) -> tuple[tuple[Plugin, ...], tuple[BrokenPlugin, ...]]:
    """Return the plug-ins that work and those that do not; each of the latter is named once on stderr.

    Args:
        taken: names of the encoders that are not plug-ins.
    """
    global _found
    if _found is None:
        working: list[Plugin] = []
        broken: list[BrokenPlugin] = []
        names = Taken(dict(taken.names), dict(taken.prefixes))
        for source in _sources():
            outcome = _loaded(source, names, [plugin.name for plugin in working])
            if isinstance(outcome, Plugin):
                working.append(outcome)
            else:
                broken.append(outcome)
                print(f"warning: {outcome.message}", file=sys.stderr, flush=True)
        _found = tuple(working), tuple(broken)
    return _found


@dataclass(frozen=True)
class _FileSource:
    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def origin(self) -> str:
        return str(self.path)

    def load(self) -> ModuleType:
        if not self.path.is_file():
            raise _Unfit("there is no such file; paths in wsi-dino.yaml are relative to its folder")
        name = f"wsi_dino_plugin_{hashlib.sha256(str(self.path).encode()).hexdigest()[:8]}_{self.name}"
        specification = importlib.util.spec_from_file_location(name, self.path)
        if specification is None or specification.loader is None:
            raise _Unfit("it is not a Python file (its name must end in .py)")
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        try:
            # Compiled here rather than by the loader, whose cache of bytecode may miss an edit within a second.
            exec(compile(self.path.read_bytes(), str(self.path), "exec", dont_inherit=True), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    def sources(self) -> list[Path]:
        return [self.path] if self.path.is_file() else []


@dataclass(frozen=True)
class _EntryPointSource:
    entry: importlib.metadata.EntryPoint

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def origin(self) -> str:
        package = "" if self.entry.dist is None else f" of {self.entry.dist.name} {self.entry.dist.version}"
        return f"entry point {self.entry.value}{package}"

    def load(self) -> ModuleType:
        module = self.entry.load()
        if not isinstance(module, ModuleType):
            raise _Unfit(f"expected the entry point to be a module, got a {type(module).__name__}")
        return module

    def sources(self) -> list[Path]:
        """Return the module's file, or all files of a package."""
        try:
            specification = importlib.util.find_spec(self.entry.module)
        except (ImportError, AttributeError, ValueError):
            return []
        if specification is None or specification.origin is None:
            return []
        path = Path(specification.origin)
        return sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]


_Source = _FileSource | _EntryPointSource


def _sources() -> Iterator[_Source]:
    for path in dict.fromkeys(_files):
        yield _FileSource(path)
    entries = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    for entry in sorted(entries, key=lambda one: (one.name, one.value)):
        yield _EntryPointSource(entry)


def _loaded(source: _Source, taken: Taken, plugin_names: Sequence[str]) -> Plugin | BrokenPlugin:
    """Import one plug-in and look at it; its names are added to `taken` when it is fit."""
    try:
        if source.name in plugin_names:
            raise _Unfit(f"another plug-in is named {source.name!r} too: rename this one")
        # What a plug-in prints must not get between a command's results.
        with contextlib.redirect_stdout(sys.stderr):
            module = source.load()
        plugin = _checked(source, module, taken)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a plug-in must not end the program
        problem = str(error) if isinstance(error, _Unfit | WsiDinoError) else in_words(error, source.sources())
        return BrokenPlugin(source.name, source.origin, problem, _claims(source))
    taken.names.update({record.name: f"plug-in {plugin.name}" for record in plugin.records})
    if plugin.prefix:
        taken.prefixes[plugin.prefix] = f"plug-in {plugin.name}"
    return plugin


def _checked(source: _Source, module: ModuleType, taken: Taken) -> Plugin:
    records = getattr(module, "RECORDS", None)
    if not isinstance(records, tuple | list) or not all(isinstance(record, EncoderSpec) for record in records):
        raise _Unfit(f"expected RECORDS, a tuple of EncoderSpec, got {_outline(records)}")
    if not callable(getattr(module, "build", None)):
        raise _Unfit("it has no function build(record)")
    for record in records:
        _check_record(record, taken)
    if len({record.name for record in records}) < len(records):
        raise _Unfit("two of its RECORDS have the same name")
    prefix = getattr(module, "NAME_PREFIX", None)
    if prefix in taken.prefixes:
        raise _Unfit(f"its NAME_PREFIX {prefix!r} is that of {taken.prefixes[prefix]}")
    if not records and not prefix:
        raise _Unfit("its RECORDS are empty")
    if not hasattr(module, "packaged_weights"):
        module.packaged_weights = _weights_beside(source.sources())  # type: ignore[attr-defined]
    guard_functions(module, source.sources(), source.origin)
    plugin = Plugin(source.name, source.origin, module, _digest(source.sources()))
    return Plugin(plugin.name, plugin.origin, module, plugin.sha256, tuple(plugin.signed(one) for one in records))


def _weights_beside(sources: Sequence[Path]) -> Callable[[EncoderSpec], Path | None]:
    """Return a function that finds the weights of ``source="file:NAME"`` in the plug-in's folder."""

    def packaged_weights(record: EncoderSpec) -> Path | None:
        if not sources or not record.source.startswith("file:"):
            return None
        path = sources[0].parent / record.source.removeprefix("file:")
        return path if path.is_file() else None

    return packaged_weights


def _check_record(record: EncoderSpec, taken: Taken) -> None:
    if record.name in taken.names:
        raise _Unfit(f"its encoder {record.name!r} has the name of one of {taken.names[record.name]}: rename it")
    for prefix, owner in taken.prefixes.items():
        if record.name.startswith(prefix):
            raise _Unfit(f"its encoder {record.name!r} begins with {prefix!r}, which means {owner}: rename it")
    if record.name in _RESERVED or not re.fullmatch(r"[A-Za-z0-9][\w.+-]*(/[\w.+-]+)*", record.name):
        raise _Unfit(f"{record.name!r} cannot be the name of an encoder: use letters, digits, '-', '_', '.'")
    if record.pooling not in record.poolings:
        raise _Unfit(f"record {record.name}: pooling {record.pooling!r} is not one of its poolings {record.poolings}")
    if record.patch_size is None and record.n_prefix_tokens:
        raise _Unfit(f"record {record.name}: n_prefix_tokens without patch_size")


def _outline(value: Any) -> str:
    if isinstance(value, tuple | list):
        kinds = dict.fromkeys(type(item).__name__ for item in value)
        return f"a {type(value).__name__} of {', '.join(kinds)}"
    return "none" if value is None else f"a {type(value).__name__}"


def _digest(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _claims(source: _Source) -> tuple[str, ...]:
    """Return what looks like names of encoders in the source, which may not even be Python."""
    names: dict[str, None] = {}
    for path in source.sources():
        names.update(dict.fromkeys(_NAME_IN_SOURCE.findall(path.read_text(encoding="utf-8", errors="replace"))))
    return tuple(names)
