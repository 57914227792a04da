"""Every listed encoder keeps the contract and its known vector by being registered; a broken one is caught."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run_command
from torch import Tensor, nn

from wsi_dino.encoders.backbone import Backbone
from wsi_dino.encoders.check import Check, outcome
from wsi_dino.encoders.contract import check_encoder
from wsi_dino.encoders.encoder import Encoder
from wsi_dino.encoders.known_vectors import KNOWN_FILE, TOLERANCE, KnownVector, digest, read_known, seeded_encoder
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.record_checks import RECORD_CHECKS
from wsi_dino.encoders.registry import builtin_records, get_record
from wsi_dino.encoders.running_checks import RUNNING_CHECKS, Subject
from wsi_dino.errors import EncoderError

_VIT_TINY = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
_LISTED = [record for record in builtin_records() if record.dimensions == 2]
_CHEAP_BELOW_M, _RUN_BELOW_M = 400, 1500
# Of the largest only shapes are checked; of those above 200 million parameters two blocks are run.
_BY_COST = [
    pytest.param(record.name, marks=[pytest.mark.slow] if (record.parameters_m or 0) > _CHEAP_BELOW_M else [])
    for record in _LISTED
    if (record.parameters_m or 0) < _RUN_BELOW_M
]
_SMALL = [record.name for record in _LISTED if (record.parameters_m or 0) < 40]


@lru_cache(maxsize=1)
def _seeded(name: str) -> tuple[Encoder, KnownVector]:
    return seeded_encoder(get_record(name))


def _failed(checks: Sequence[Check]) -> list[Check]:
    return [check for check in checks if check.passed is False]


# --- the listed encoders --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [record.name for record in builtin_records()])
def test_records_are_complete_and_fit_their_networks(name: str) -> None:
    record = get_record(name)
    names = RECORD_CHECKS if record.dimensions == 2 else ["record"]
    assert _failed([outcome(title, RECORD_CHECKS[title], record) for title in names]) == []


@pytest.mark.parametrize("name", _BY_COST)
def test_encoders_keep_the_contract_and_give_the_known_vector(name: str) -> None:
    encoder, found = _seeded(name)
    subject = Subject(encoder)
    checks = [outcome(title, check, subject) for title, check in RUNNING_CHECKS.items()]
    assert [(check.name, check.measured) for check in checks if not check.passed] == []
    expected = read_known()[name]
    if expected.layout != found.layout:
        pytest.skip(f"this timm names or shapes the tensors of {name} otherwise: its vector cannot be compared")
    assert expected.made_at == found.made_at
    assert found.difference(expected) <= TOLERANCE


@pytest.mark.parametrize("name", _SMALL)
def test_known_vector_notices_a_wrong_preparation_or_pooling(name: str) -> None:
    encoder, right = _seeded(name)
    spec = encoder.spec
    wrong: dict[str, dict[str, Any]] = {
        "mean off by 2 %": {"mean": tuple(value * 1.02 for value in spec.mean)},
        "std off by 2 %": {"std": tuple(value * 1.02 for value in spec.std)},
        "no normalisation": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
        "channels swapped": {"mean": spec.mean[::-1], "std": spec.std[::-1]},
        "interpolation": {"interpolation": "bilinear" if spec.interpolation == "bicubic" else "bicubic"},
    }
    if len(set(spec.mean)) == len(set(spec.std)) == 1:
        del wrong["channels swapped"]
    if set(spec.mean) == {0.0}:  # a mean that is 2 % off is still none
        del wrong["mean off by 2 %"], wrong["no normalisation"]
    wrong |= {pooling: {"pooling": pooling} for pooling in spec.poolings if pooling != spec.pooling}
    distances = {
        mistake: digest(encoder.altered(**fields), right.layout).difference(right) for mistake, fields in wrong.items()
    }
    assert min(distances.values()) > 2 * TOLERANCE, distances


def test_every_encoder_of_images_has_a_known_vector() -> None:
    assert set(read_known()) == {parameter.values[0] for parameter in _BY_COST}, (
        "python -m wsi_dino.encoders.known_vectors NAME writes those that are missing"
    )


def test_seeded_weights_do_not_depend_on_torchs_generator_and_leave_it_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = seeded_encoder(get_record("resnet50-clam"))[1]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert seeded_encoder(get_record("resnet50-clam"))[1] == first


# --- broken ones ----------------------------------------------------------------------------------


class _Patches(Backbone):
    """A sound network of 4 numbers a patch of 16 px, and the ways to break it."""

    def __init__(self, flaw: str = "") -> None:
        super().__init__()
        self.flaw = flaw
        self.patches = nn.Conv2d(3, 4, 16, 16)

    def vectors(self, pixels: Tensor, pooling: str) -> Tensor:
        if self.flaw == "own normalisation":
            pixels = nn.functional.instance_norm(pixels)
        if self.flaw == "channels summed":
            pixels = pixels.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        vectors = self.patches(pixels).mean((2, 3))
        if self.flaw == "dropout":
            vectors = nn.functional.dropout(vectors, 0.5, training=True)
        if self.flaw == "batch statistics":
            vectors = vectors - vectors.mean(0)
        if self.flaw == "places":
            vectors = vectors + torch.arange(len(vectors))[:, None]
        if self.flaw == "division by contrast":
            vectors = vectors / (pixels.std((2, 3)).sum(1) > 1e-4)[:, None]
        if self.flaw == "constant":
            vectors = vectors * 0 + 1
        return vectors[:, :3] if self.flaw == "three numbers" else vectors

    def maps(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        one = self.patches(pixels)
        if self.flaw == "transposed maps":
            one = one.transpose(2, 3)
        if self.flaw == "maps with CLS":
            one = nn.functional.pad(one, (1, 0))
        if self.flaw == "shifted maps":
            one = one.flatten(2).roll(1, dims=2).view(one.shape)
        return [one for _ in layers][: 1 if self.flaw == "one map" else None]


def _broken(flaw: str) -> Subject:
    spec = EncoderSpec(
        name="patches", architecture="", embed_dim=4, input_px=64, input_multiple_px=16, patch_size=16,
        pooling="mean", poolings=("mean",), feature_layers=(0, 1), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
        source="", licence="",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _Patches(flaw)
    return Subject(
        Encoder(spec, network, pooling="mean", input_px=64, device="cpu", precision="fp32", weights_sha256="",
                weights_source="", workers=1)
    )  # fmt: skip


def test_a_sound_network_passes() -> None:
    subject = _broken("")
    assert _failed([outcome(title, check, subject) for title, check in RUNNING_CHECKS.items()]) == []


@pytest.mark.parametrize(
    ("flaw", "check", "message"),
    [
        ("three numbers", "vectors", "expected vectors of shape"),
        ("dropout", "repeatable", "between two calls"),
        ("batch statistics", "batches", "images at once"),
        ("places", "order", "reversing the order"),
        ("division by contrast", "extremes", "not finite"),
        ("constant", "extremes", "equal vectors"),
        ("constant", "normalisation", "nobody would notice"),
        ("own normalisation", "normalisation", "without mean and std"),
        ("channels summed", "normalisation", "red and blue swapped"),
        ("transposed maps", "feature maps", "row 3, column 0"),
        ("maps with CLS", "feature maps", "has shape"),
        ("shifted maps", "feature maps", "row 1, column 0"),
        ("one map", "feature maps", "expected 2, one for each"),
    ],
)
def test_each_flaw_fails_its_check(flaw: str, check: str, message: str) -> None:
    found = outcome(check, RUNNING_CHECKS[check], _broken(flaw))
    assert found.passed is False
    assert re.search(message, found.measured), found.measured


def test_a_network_left_in_training_mode_is_found() -> None:
    subject = _broken("")
    subject.encoder.network.patches.train()
    assert not outcome("frozen", RUNNING_CHECKS["frozen"], subject).passed
    subject.encoder.network.eval().requires_grad_(True)
    assert "ask for a gradient" in outcome("frozen", RUNNING_CHECKS["frozen"], subject).measured


@pytest.mark.parametrize(
    ("changes", "check", "message"),
    [
        ({"training_data": ""}, "record", "unstated: training_data"),
        ({"mean": (123.7, 116.3, 103.5)}, "record", "not on a scale of 0..1"),
        ({"feature_layers": (3, 1)}, "record", "do not rise"),
        ({"embed_dim": 192}, "shapes", "expected vectors \\(2, 192\\)"),
        ({"parameters_m": 30.0}, "shapes", "21.6 million parameters, the record says 30"),
        ({"patch_size": 8, "input_multiple_px": 8}, "shapes", "the map of layer 2"),
        ({"feature_layers": (2, 50)}, "shapes", ""),
        ({"architecture_options": {"dynamic_img_size": False}}, "sizes", ""),
        ({"input_multiple_px": 8}, "sizes", ""),
    ],
)
def test_a_record_that_is_wrong_is_found(changes: dict[str, Any], check: str, message: str) -> None:
    found = outcome(check, RECORD_CHECKS[check], get_record("dinov3-s").model_copy(update=changes))
    assert found.passed is False
    assert re.search(message, found.measured), found.measured


# --- the command ----------------------------------------------------------------------------------


def test_command_checks_an_encoder_and_says_what_was_measured(tmp_path: Path) -> None:
    ran = run_command(tmp_path, "encoders", "check", "resnet50-clam", "--px", "64", "--precision", "fp32")
    assert ran.code == 0, ran.stdout
    assert "weights: random, seed 0, because there are none on this machine; 64 px, fp32 on cpu" in ran.stdout
    assert "64, 224, 256, 1024 px give the right shapes; 0, 225 px are refused" in ran.stdout
    assert "0 from it" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "resnet50-clam: all checks passed"


def test_command_keeps_a_known_vector_and_notices_a_change(tmp_path: Path) -> None:
    known = tmp_path / "known.json"
    plain = ("encoders", "check", "efficientnet-lite0", "--px", "64", "--json")
    assert run_command(tmp_path, *plain, "--write-known", known).code == 0
    kept = read_known(known)["efficientnet-lite0"]
    assert kept == read_known()["efficientnet-lite0"]
    assert run_command(tmp_path, *plain, "--known", known).code == 0
    known.write_text(known.read_text().replace(f'"rms":{kept.rms}', f'"rms":{kept.rms * 1.01}'), encoding="utf-8")
    changed = run_command(tmp_path, *plain, "--known", known)
    assert changed.code == 1
    (entry,) = changed.json["encoders"]
    assert [check["name"] for check in entry["checks"] if check["passed"] is False] == ["known vector"]
    known.write_text(known.read_text().replace(kept.layout, "0" * 12), encoding="utf-8")
    other = run_command(tmp_path, *plain, "--known", known)
    assert other.code == 0
    assert "other names or shapes than with torch" in other.json["encoders"][0]["checks"][-1]["measured"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("encoders", "check"), "name the encoder to check"),
        (("encoders", "check", "dinov3s"), "Did you mean 'dinov3-s'"),
        (("encoders", "uni", "conch"), "expected one NAME"),
        (("encoders", "check", "dinov3-s", "--px", "100"), "multiple of 16 px"),
        (("encoders", "check", "dinov3-s", "--weights", "absent.pth"), "absent.pth is not a file"),
        (("encoders", "check", "dinov3-s", "uni", "--weights", "a.pth"), "goes with one encoder"),
        (("encoders", "check", "dinov3-s", "--known", "gone.json"), "Reading known vectors gone.json"),
    ],
)
def test_command_refuses_what_it_cannot_check(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    ran = run_command(tmp_path, *words)
    assert ran.code == 2
    assert message in ran.stderr


def test_encoders_too_large_to_run_are_checked_by_their_shapes() -> None:
    report = check_encoder("dinov3-7b")
    assert report.passed
    assert report.input_px is None
    assert "6716 million random ones are not made: only shapes are checked" in report.weights
    checks = {check.name: check for check in report.checks}
    assert checks["shapes"].passed
    assert checks["sizes"].passed
    assert checks["known vector"].passed is None
    assert "too many for a known vector" in checks["known vector"].measured


@pytest.mark.parametrize("name", ["dinov2-s", "lunit-s8"])
def test_untrained_class_tokens_depend_on_the_image_by_more_than_the_rounding_of_bf16(name: str) -> None:
    report = check_encoder(name, random_weights=3, input_px=56, device="cpu", precision="bf16")
    assert _failed(report.checks) == []


def test_networks_of_volumes_are_checked_by_their_record() -> None:
    report = check_encoder("ct-clip")
    assert report.passed
    assert "no command runs it" in report.weights


def test_a_file_that_holds_no_known_vectors_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(EncoderError, match=r"other\.json"):
        read_known(path)
    assert KNOWN_FILE.is_file()


def test_real_weights_keep_the_contract(shared_data: Path) -> None:
    weights = next((shared_data / "weights").glob("vit_tiny*.safetensors"))
    report = check_encoder(_VIT_TINY, weights=weights, device="cpu", precision="fp32")
    assert _failed(report.checks) == []
    assert np.isclose(report.input_px or 0, 224)
