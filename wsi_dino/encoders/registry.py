"""Every known encoder by name, plug-ins included. Reads records only: torch is not imported here."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from wsi_dino.encoders import families
from wsi_dino.encoders.plugins import BrokenPlugin, Plugin, Taken, find_plugins
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.errors import EncoderError, UnknownEncoderError, nearest_name


def records() -> tuple[EncoderSpec, ...]:
    """Return the records of all listed encoders by family, plug-ins last.

    Examples:
        >>> "dinov3-s" in [record.name for record in records()]
        True
    """
    return (*builtin_records(), *(record for plugin in _plugins()[0] for record in plugin.records))


def builtin_records() -> tuple[EncoderSpec, ...]:
    """Return the records of the encoders that are no plug-ins."""
    return tuple(record for module in builtin_families().values() for record in module.RECORDS)


def name_patterns() -> tuple[str, ...]:
    """Return a sentence for every kind of name that is not listed, such as ``timm/NAME``.

    Examples:
        >>> any("timm/NAME" in sentence for sentence in name_patterns())
        True
    """
    modules = [module for module in builtin_families().values() if hasattr(module, "NAME_PREFIX")]
    return tuple((module.__doc__ or module.NAME_PREFIX).splitlines()[0] for module in modules)


def get_record(name: str, *, near: Sequence[Path] = ()) -> EncoderSpec:
    """Return the record of one encoder.

    Args:
        name: a listed name, or ``timm/NAME`` for any model of timm (which imports timm to read its
            configuration).
        near: files and folders of weights that the user named; a record that is made from the files of a
            network (``hf/REPO``) is made from those that lie there.

    Raises:
        UnknownEncoderError: nothing has that name; the nearest is given.

    Examples:
        >>> get_record("dinov3-s").embed_dim
        384
    """
    listed = {record.name: record for record in records()}
    if name in listed:
        return listed[name]
    for module in builtin_families().values():
        prefix = getattr(module, "NAME_PREFIX", None)
        if prefix and name.startswith(prefix):
            near_files = hasattr(module, "make_record_near")
            record: EncoderSpec = module.make_record_near(name, near) if near_files else module.make_record(name)
            return record
    working, broken = _plugins()
    for plugin in working:
        if plugin.prefix and name.startswith(plugin.prefix):
            return plugin.signed(plugin.module.make_record(name))
    raise _unknown(name, listed, broken)


def _unknown(name: str, listed: Iterable[str], broken: Sequence[BrokenPlugin]) -> EncoderError:
    for plugin in broken:
        if name == plugin.name or name in plugin.claims:
            return EncoderError(f"Encoder {name!r} cannot be used. {plugin.message}")
    also = f" Left out: {', '.join(f'{plugin.name} ({plugin.origin})' for plugin in broken)}." if broken else ""
    return UnknownEncoderError(
        f"Encoder {name!r} is not known.{nearest_name(name, listed)} "
        f"`wsi-dino encoders` lists them; others are timm/NAME, openclip/NAME, hf/REPO and onnx/FILE.{also}"
    )


def family_of(record: EncoderSpec) -> ModuleType:
    """Return the module that builds the encoder of `record`."""
    try:
        return family_modules()[record.family]
    except KeyError:
        raise EncoderError(
            f"Encoder {record.name}: no module of encoders/families is named {record.family!r}"
        ) from None


def family_modules() -> dict[str, ModuleType]:
    """Return the modules that build encoders by family: those of ``encoders/families`` and the plug-ins."""
    return {**builtin_families(), **{plugin.family: plugin.module for plugin in _plugins()[0]}}


def _plugins() -> tuple[tuple[Plugin, ...], tuple[BrokenPlugin, ...]]:
    modules = builtin_families()
    prefixes = {module.NAME_PREFIX: name for name, module in modules.items() if hasattr(module, "NAME_PREFIX")}
    return find_plugins(Taken({record.name: "wsi_dino itself" for record in builtin_records()}, prefixes))


@lru_cache(maxsize=1)
def builtin_families() -> dict[str, ModuleType]:
    """Return the modules of ``encoders/families`` by name.

    Raises:
        EncoderError: two records share a name, or a record names another family than its module.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(families.__path__))
    modules = {name: importlib.import_module(f"{families.__name__}.{name}") for name in names}
    owner: dict[str, str] = {}
    for family, module in modules.items():
        for record in module.RECORDS:
            if record.name in owner or record.family != family:
                other = owner.get(record.name, record.family)
                raise EncoderError(f"Encoder {record.name} of families/{family}.py is also claimed by {other}")
            owner[record.name] = family
    return modules
