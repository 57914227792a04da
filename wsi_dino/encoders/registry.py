"""Every known encoder by name. Reads records only: torch is not imported here."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from types import ModuleType

from wsi_dino.encoders import families
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.errors import EncoderError, UnknownEncoderError, nearest_name


def records() -> tuple[EncoderSpec, ...]:
    """Return the records of all listed encoders, ordered by name.

    Examples:
        >>> "dinov3-s" in [record.name for record in records()]
        True
    """
    listed = [record for module in family_modules().values() for record in module.RECORDS]
    return tuple(sorted(listed, key=lambda record: record.name))


def get_record(name: str) -> EncoderSpec:
    """Return the record of one encoder.

    Args:
        name: a listed name, or ``timm/NAME`` for any model of timm (which imports timm to read its
            configuration).

    Raises:
        UnknownEncoderError: nothing has that name; the nearest is given.

    Examples:
        >>> get_record("dinov3-s").embed_dim
        384
    """
    listed = {record.name: record for record in records()}
    if name in listed:
        return listed[name]
    for module in family_modules().values():
        prefix = getattr(module, "NAME_PREFIX", None)
        if prefix and name.startswith(prefix):
            record: EncoderSpec = module.make_record(name)
            return record
    raise UnknownEncoderError(
        f"Encoder {name!r} is not known.{nearest_name(name, listed)} "
        "`wsi-dino encoders` lists them; any model of timm is timm/NAME."
    )


def family_of(record: EncoderSpec) -> ModuleType:
    """Return the module that builds the encoder of `record`."""
    try:
        return family_modules()[record.family]
    except KeyError:
        raise EncoderError(
            f"Encoder {record.name}: no module of encoders/families is named {record.family!r}"
        ) from None


@lru_cache(maxsize=1)
def family_modules() -> dict[str, ModuleType]:
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
