"""Encoders of one's own: a file in wsi-dino.yaml or an entry point, in every command; a broken one harms nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import Ran, run_command

from wsi_dino.encoders.loading import load_encoder
from wsi_dino.encoders.plugins import use_plugin_files
from wsi_dino.encoders.registry import get_record, records
from wsi_dino.errors import EncoderError
from wsi_dino.feature_file import read_feature_file
from wsi_dino.pathology.synthetic import draw_tissue, write_pyramid

_MINE = """
from wsi_dino.encoders.record import EncoderSpec

RECORDS = (
    EncoderSpec(
        name="mine", architecture="", embed_dim=12, input_px=32, input_multiple_px=16, patch_size=16,
        pooling="mean", poolings=("mean",), feature_layers=(0,), source="file:mine.pth", licence="our own",
    ),
)

def build(record):
    from torch import nn
    from wsi_dino.encoders.backbone import Backbone

    class Patches(Backbone):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 12, 16, 16)

        def vectors(self, pixels, pooling):
            return self.patches(pixels).mean((2, 3))

        def maps(self, pixels, layers):
            return [self.patches(pixels) for _ in layers]

    return Patches()
"""


@pytest.fixture(autouse=True)
def _no_plugins_left() -> Iterator[None]:
    yield
    use_plugin_files([])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a plug-in below it that wsi-dino.yaml names."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(_MINE, encoding="utf-8")
    (tmp_path / "wsi-dino.yaml").write_text("encoders: [code/mine.py]\n", encoding="utf-8")
    return tmp_path


def _write(project: Path, name: str, text: str) -> None:
    """Write another plug-in, and name both in wsi-dino.yaml."""
    (project / "code" / name).write_text(text, encoding="utf-8")
    (project / "wsi-dino.yaml").write_text(f"encoders: [code/mine.py, code/{name}]\n", encoding="utf-8")


def _features(ran: Ran, project: Path) -> bytes:
    assert ran.code == 0, ran.stderr
    return (project / "run" / "features" / "mine" / "S.h5").read_bytes()


# --- in every command -----------------------------------------------------------------------------


def test_listed_and_shown_like_any_other(project: Path) -> None:
    listed = run_command(project, "encoders", "--json").json["encoders"]
    assert "mine" in [entry["name"] for entry in listed]
    shown = run_command(project, "encoders", "mine")
    assert shown.code == 0
    assert "plugin:mine" in shown.stdout
    assert shown.stderr == ""
    status = run_command(project, "weights", "status", "mine")
    assert "put mine.pth beside the plug-in, or give --weights" in status.stdout


def test_known_only_where_the_yaml_names_it(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert run_command(project, "encoders", "mine").code == 0
    assert run_command(tmp_path_factory.mktemp("elsewhere"), "encoders", "mine").code == 2


def test_checked_by_the_contract(project: Path) -> None:
    ran = run_command(project, "encoders", "check", "mine", "--write-known", "code/known.json")
    assert ran.code == 0, ran.stdout
    assert "random, seed 0, because there are none on this machine" in ran.stdout
    again = run_command(project, "encoders", "check", "mine", "--known", "code/known.json")
    assert "0 from it" in again.stdout
    source = project / "code" / "mine.py"
    source.write_text(_MINE.replace("licence=", "std=(0.3, 0.3, 0.3), licence="), encoding="utf-8")
    changed = run_command(project, "encoders", "check", "mine", "--known", "code/known.json")
    assert changed.code == 1
    assert "FAILED  known vector" in changed.stdout


@pytest.fixture
def tiled(project: Path) -> Path:
    (project / "slides").mkdir()
    image, _ = draw_tissue(np.random.default_rng(0), (2048, 1536), tumour=True)
    write_pyramid(project / "slides" / "S.tif", image, downsamples=(1, 4))
    assert run_command(project, "tile", "slides", "--run", "run", "--tile-px", "128").code == 0
    return project


def test_embeds_slides_and_a_changed_plugin_serves_no_old_features(tiled: Path) -> None:
    command = ("embed", "--run", "run", "--encoder", "mine", "--random-weights", "0")
    first = _features(run_command(tiled, *command), tiled)
    again = run_command(tiled, *command)
    assert "(1 of them before)" in again.stderr
    assert _features(again, tiled) == first

    source = tiled / "code" / "mine.py"
    source.write_text(_MINE.replace(".mean((2, 3))", ".amax((2, 3))"), encoding="utf-8")
    changed = run_command(tiled, *command)
    assert "1 slides have features of another choice; they are made anew" in changed.stderr
    assert _features(changed, tiled) != first
    file = read_feature_file(tiled / "run" / "features" / "mine" / "S.h5")
    assert file.identity["plugin_sha256"] == file.provenance["record"]["plugin_sha256"]


def test_input_size_is_chosen_on_the_command_line(tiled: Path) -> None:
    command = ("embed", "--run", "run", "--encoder", "mine", "--random-weights", "0")
    _features(run_command(tiled, *command, "--input-px", "48"), tiled)
    assert read_feature_file(tiled / "run" / "features" / "mine" / "S.h5").identity["input_px"] == 48
    for side, message in (("40", "32 px or a multiple of 16 px, got 40"), ("wide", "a whole number of pixels")):
        refused = run_command(tiled, *command, "--input-px", side)
        assert refused.code == 2
        assert message in refused.stderr


def test_own_weights_beside_the_plugin_are_found_and_decide_the_vectors(project: Path) -> None:
    import torch

    use_plugin_files([project / "code" / "mine.py"])
    with pytest.raises(EncoderError, match=r"there is no mine\.pth beside its plug-in"):
        load_encoder("mine", device="cpu")
    state = {"patches.weight": torch.full((12, 3, 16, 16), 1 / 768), "patches.bias": torch.arange(12.0)}
    torch.save(state, project / "code" / "mine.pth")
    encoder = load_encoder("mine", device="cpu", precision="fp32")
    grey = encoder.embed(np.full((1, 32, 32, 3), 128, np.uint8))[0]
    spec = encoder.spec
    expected = np.mean((128 / 255 - np.array(spec.mean)) / np.array(spec.std)) + np.arange(12)
    np.testing.assert_allclose(grey, expected, rtol=1e-5)


def test_names_that_are_not_listed_may_come_from_a_plugin(project: Path) -> None:
    text = _MINE.replace("RECORDS = (", "_ALL = (") + '\nRECORDS = ()\nNAME_PREFIX = "ours/"\n'
    text += "def make_record(name):\n    return _ALL[0].model_copy(update={'name': name})\n"
    _write(project, "many.py", text)
    use_plugin_files([project / "code" / "many.py"])
    record = get_record("ours/seven")
    assert (record.name, record.family) == ("ours/seven", "plugin:many")
    assert load_encoder("ours/seven", random_weights=0, device="cpu").embed_dim == 12


# --- entry points ---------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as an installer lays it out, with an entry point."""
    folder = tmp_path / "site"
    (folder / "our_lab_encoders").mkdir(parents=True)
    (folder / "our_lab_encoders" / "__init__.py").write_text(
        _MINE.replace('name="mine"', 'name="lab-mine"'), encoding="utf-8"
    )
    metadata = folder / "our_lab-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: our-lab\nVersion: 1.2\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text("[wsi_dino.encoders]\nlab = our_lab_encoders\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_an_installed_package_adds_encoders_by_its_entry_point(installed: Path, tmp_path: Path) -> None:
    shown = run_command(tmp_path, "encoders", "lab-mine", "--json")
    assert shown.code == 0, shown.stderr
    assert shown.json["family"] == "plugin:lab"
    assert shown.json["plugin_sha256"]


def test_a_broken_package_is_named_with_its_version(installed: Path, tmp_path: Path) -> None:
    (installed / "our_lab-1.2.dist-info" / "entry_points.txt").write_text(
        "[wsi_dino.encoders]\nlab = our_lab_gone\n", encoding="utf-8"
    )
    ran = run_command(tmp_path, "encoders", "dinov3-s")
    assert ran.code == 0
    assert ran.stderr.count("\n") == 1
    assert "lab (entry point our_lab_gone of our-lab 1.2) is left out: ModuleNotFoundError" in ran.stderr


# --- broken ones ----------------------------------------------------------------------------------

_BROKEN = {
    "import error": ('import no_such_library\nname = "theirs"', "ModuleNotFoundError: No module named"),
    "syntax": ('name="theirs"\ndef build(:', r"SyntaxError: .*\(line 2\)"),
    "exit": ('name="theirs"\nraise SystemExit(3)', r"SystemExit: 3 \(line 2\)"),
    "no records": ('name="theirs"\ndef build(record): pass', "expected RECORDS, a tuple of EncoderSpec, got none"),
    "dictionaries": ('RECORDS = ({"name": "theirs"},)\nname="theirs"', "got a tuple of dict"),
    "no build": (_MINE.replace("def build", "def make").replace('"mine"', '"theirs"'), "no function build"),
    "unknown field": (
        _MINE.replace('"mine"', '"theirs"').replace("licence=", "license="),
        "ValidationError: .*licen[cs]e",
    ),
    "clash with ours": (_MINE.replace('"mine"', '"uni"') + 'name="theirs"', "'uni' has the name of one of wsi_dino"),
    "clash with another": (_MINE + 'name="theirs"', "'mine' has the name of one of plug-in mine"),
    "prefix of ours": (_MINE.replace('"mine"', '"timm/mine"') + 'name="theirs"', "begins with 'timm/'"),
    "a verb's word": (_MINE.replace('"mine"', '"check"') + 'name="theirs"', "'check' cannot be the name"),
    "wrong pooling": (_MINE.replace('"mine"', '"theirs"').replace('("mean",)', '("cls",)'), "'mean' is not one of"),
}  # fmt: skip


@pytest.mark.parametrize("flaw", _BROKEN)
def test_a_broken_plugin_warns_once_by_name_and_harms_nothing_else(flaw: str, project: Path) -> None:
    text, message = _BROKEN[flaw]
    _write(project, "theirs.py", text)
    ran = run_command(project, "encoders", "--json")
    assert ran.code == 0
    names = [entry["name"] for entry in ran.json["encoders"]]
    assert {"mine", "uni", "dinov3-s"} < set(names)
    assert len(names) == len(set(names))
    assert re.fullmatch(r"warning: The encoder plug-in theirs \(\S+theirs\.py\) is left out: .*\n", ran.stderr)
    assert re.search(message, ran.stderr), ran.stderr
    asked = run_command(project, "encoders", "check", "theirs")
    assert asked.code == 2
    assert re.search(rf"error: Encoder 'theirs' cannot be used\. .*{message}", asked.stderr)


def test_a_file_that_is_not_there_is_named(project: Path) -> None:
    (project / "wsi-dino.yaml").write_text("encoders: [mine.py, code/mine.py]\n", encoding="utf-8")
    ran = run_command(project, "encoders", "mine")
    assert "no such file; paths in wsi-dino.yaml are relative to its folder" in ran.stderr
    other = run_command(project, "encoders", "miner")
    assert other.code == 2
    assert "Left out: mine (" in other.stderr


def test_what_a_plugin_prints_stays_out_of_the_results(project: Path) -> None:
    _write(project, "chatty.py", 'print("hello")\n' + _MINE.replace('"mine"', '"chatty"'))
    ran = run_command(project, "encoders", "--json")
    assert "chatty" in [entry["name"] for entry in ran.json["encoders"]]
    assert ran.stderr == "hello\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return Patches()", "return nn.Identity()", "expected a wsi_dino.encoders.backbone.Backbone, got Identity"),
        ("return Patches()", "return Patches", "expected a wsi_dino.encoders.backbone.Backbone, got type"),
        ("nn.Conv2d(3, 12", "nn.Conv2d(3, '12'", r"Running build of the plug-in \S+: TypeError: .* \(line \d+\)"),
        (".mean((2, 3))", ".mean((2, 9))", r"Running vectors of the plug-in \S+mine\.py: IndexError: .* \(line 21\)"),
        ("embed_dim=12", "embed_dim=13", r"expected vectors of shape .*13.* as its record says .*, got .*12"),
    ],
)  # fmt: skip
def test_a_plugin_that_breaks_while_it_runs_is_a_message_with_its_line(
    old: str, new: str, message: str, project: Path
) -> None:
    (project / "code" / "mine.py").write_text(_MINE.replace(old, new), encoding="utf-8")
    use_plugin_files([project / "code" / "mine.py"])
    with pytest.raises(EncoderError, match=message):
        load_encoder("mine", random_weights=0, device="cpu").embed(np.zeros((1, 32, 32, 3), np.uint8))


def test_a_copy_of_a_plugins_network_runs_its_own_weights(project: Path) -> None:
    import copy

    import torch

    from wsi_dino.encoders.registry import family_of

    use_plugin_files([project / "code" / "mine.py"])
    network = family_of(get_record("mine")).build(get_record("mine"))
    twin = copy.deepcopy(network)
    torch.nn.init.zeros_(network.patches.weight)
    torch.nn.init.zeros_(network.patches.bias)
    image = torch.ones(1, 3, 32, 32)
    assert network.vectors(image, "mean").abs().max() == 0
    assert twin.vectors(image, "mean").abs().max() > 0


def test_an_edited_plugin_is_read_anew_even_within_a_second(project: Path) -> None:
    source = project / "code" / "mine.py"
    stat = source.stat()
    use_plugin_files([source])
    before = get_record("mine")
    source.write_text(_MINE.replace("our own", "our two"), encoding="utf-8")
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    use_plugin_files([source])
    after = get_record("mine")
    assert (before.licence, after.licence) == ("our own", "our two")
    assert before.plugin_sha256 != after.plugin_sha256


def test_without_plugins_nothing_is_signed() -> None:
    use_plugin_files([])
    assert {record.plugin_sha256 for record in records()} == {None}


def test_wrong_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "wsi-dino.yaml").write_text("encoders: mine.py\n", encoding="utf-8")
    ran = run_command(tmp_path, "encoders")
    assert ran.code == 2
    assert "encoders: Input should be a valid list" in ran.stderr
