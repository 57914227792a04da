"""The exception tree is what its docstring draws, and near names are offered."""

from __future__ import annotations

import inspect

from hypothesis import given
from hypothesis import strategies as st

from wsi_dino import errors


def _classes() -> dict[str, type[Exception]]:
    return {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls) and issubclass(cls, Exception)}


def test_every_error_descends_from_one_root() -> None:
    assert all(issubclass(cls, errors.WsiDinoError) for cls in _classes().values())


def test_drawn_tree_equals_class_tree() -> None:
    drawn: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        words = line.strip("│├└─ ").split()
        if not words or words[0] not in _classes():
            continue
        depth = line.index(words[0])
        above = [(d, name) for d, name in above if d < depth]
        drawn[words[0]] = above[-1][1] if above else "Exception"
        above.append((depth, words[0]))
    assert drawn == {name: cls.__mro__[1].__name__ for name, cls in _classes().items()}


def test_nearest_name_is_quiet_when_nothing_is_near() -> None:
    assert errors.nearest_name("qqqq", ["uni", "conch"]) == ""
    assert errors.nearest_name("uni", []) == ""


@given(st.sampled_from(["efficientnet-lite0", "dinov3-s", "resnet50-clam"]), st.integers(0, 7))
def test_one_lost_letter_still_finds_the_name(name: str, place: int) -> None:
    typed = name[:place] + name[place + 1 :]
    assert errors.nearest_name(typed, ["efficientnet-lite0", "dinov3-s", "resnet50-clam"]) == f" Did you mean '{name}'?"
