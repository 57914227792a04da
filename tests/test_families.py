"""Every record is complete; that it agrees with its network is the contract's to show (test_encoder_contract)."""

from __future__ import annotations

import pytest

from wsi_dino.encoders.loading import load_encoder
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.registry import builtin_records, family_of, get_record
from wsi_dino.errors import EncoderError

_NAMES = [record.name for record in builtin_records()]
_OF_IMAGES = [record for record in builtin_records() if record.dimensions == 2]


def test_the_papers_and_the_pathologists_encoders_are_there() -> None:
    wanted = """
        dinov3-s dinov3-s-plus dinov3-b dinov3-l dinov3-l-sat dinov3-h-plus dinov3-7b
        dinov2-s dinov2-b dinov2-l dinov2-g dinov2-s-reg dinov2-b-reg dinov2-l-reg dinov2-g-reg
        uni uni2-h conch conch-224 conch-v1.5 biomedclip resnet50 resnet50-clam mae-b mae-l moco-v3 swav byol simclr
        virchow2 h-optimus-0 h-optimus-1 phikon-v2 gigapath lunit-s8 kaiko-s8 kaiko-s16 kaiko-b8 kaiko-b16 kaiko-l14
        efficientnet-lite0 ct-clip ct-net voco
    """
    assert set(wanted.split()) <= set(_NAMES)


@pytest.mark.parametrize("name", _NAMES)
def test_record_is_complete(name: str) -> None:
    record = get_record(name)
    assert record.pooling in record.poolings
    assert record.source
    assert record.licence
    assert record.licence_url.startswith("https://")
    assert record.training_data
    assert record.notes.endswith(".")
    assert all(sentence.endswith(".") for sentence in record.obligations)
    assert "NC" not in record.licence or record.obligations
    assert record.revision is None or record.source.startswith("package:") or len(record.revision) == 40
    assert record.weights_sha256 is None or len(record.weights_sha256) == 64
    assert 0.5 < record.crop_fraction <= 1
    assert "fp32" in record.precisions
    assert record.feature_layers == tuple(sorted(record.feature_layers))
    assert EncoderSpec.model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize("record", _OF_IMAGES, ids=lambda record: record.name)
def test_record_of_images_tells_what_goes_in_and_what_comes_out(record: EncoderSpec) -> None:
    assert record.embed_dim > 0
    assert record.parameters_m
    assert len(record.feature_layers) >= 3
    assert all(0 <= value < 1 for value in record.mean)
    assert all(0 < value <= 1 for value in record.std)
    assert record.patch_size is None or record.input_px % record.patch_size == 0
    assert record.input_multiple_px is None or record.input_px % record.input_multiple_px == 0
    assert record.patch_size is None or record.input_multiple_px in (None, record.patch_size)


def test_dinov3_is_not_run_in_half_precision_and_its_terms_travel() -> None:
    for record in _OF_IMAGES:
        if record.family == "dinov3":
            assert record.precisions == ("fp32", "bf16")
            assert any("Name DINOv3" in sentence for sentence in record.obligations)


@pytest.mark.parametrize("name", ["ct-clip", "ct-net", "voco"])
def test_networks_of_volumes_say_what_they_are_listed_for(name: str) -> None:
    with pytest.raises(EncoderError, match=r"it takes .+, not images; it is listed for comparison only") as trouble:
        load_encoder(name, random_weights=0)
    assert get_record(name).takes in str(trouble.value)
    assert ("Table 5" in str(trouble.value)) == (name != "voco")
    with pytest.raises(EncoderError):
        family_of(get_record(name)).build(get_record(name))


def test_what_is_not_public_says_which_file_works() -> None:
    hidden = [record for record in builtin_records() if not record.is_public]
    assert {record.name for record in hidden} == {"byol", "ct-net"}
    with pytest.raises(EncoderError, match=r"no weights of it are public\. .*--weights"):
        load_encoder("byol")
    with pytest.raises(EncoderError, match=r"swav_800ep_pretrain\.pth\.tar, not on the hub"):
        load_encoder("swav")
