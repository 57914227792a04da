"""Image towers of open_clip: the same vectors as its `encode_image`, and its names for weights understood."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wsi_dino.encoders import hub
from wsi_dino.encoders.encoder import Encoder
from wsi_dino.encoders.families import openclip
from wsi_dino.encoders.loading import load_encoder
from wsi_dino.encoders.registry import get_record
from wsi_dino.encoders.torchvision_guard import ensure_torchvision
from wsi_dino.errors import EncoderError, HubError, UnknownEncoderError, WeightsError

ensure_torchvision()
open_clip = pytest.importorskip("open_clip", reason="open_clip comes with the extra openclip")

_TEXT = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
# Small towers of every kind that open_clip has: its own ViT, CoCa's pooler, its ResNet, timm's ViT and ConvNeXt.
_TOWERS: dict[str, dict[str, Any]] = {
    "test-own-vit": {"image_size": 64, "layers": 3, "width": 64, "head_width": 32, "patch_size": 16},
    "test-late-norm": {
        "image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "final_ln_after_pool": True,
        "pool_type": "avg",
    },
    "test-resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "patch_size": None},
    "test-timm-vit": {
        "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 224,
    },
    "test-convnext": {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear", "image_size": 64},
}  # fmt: skip
_COCA = {
    "image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16,
    "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _small_architectures(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let open_clip know small architectures, as a user may add own ones."""
    folder = tmp_path_factory.mktemp("model_configs")
    for name, vision in _TOWERS.items():
        settings = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": _TEXT}
        (folder / f"{name}.json").write_text(json.dumps(settings))
    decoder = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    coca = {"embed_dim": 32, "vision_cfg": _COCA, "text_cfg": {**_TEXT, "embed_cls": True, "output_tokens": True},
            "multimodal_cfg": decoder, "custom_text": True}  # fmt: skip
    (folder / "test-coca.json").write_text(json.dumps(coca))
    open_clip.add_model_config(folder)


def _whole_model(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return open_clip.create_model(name, pretrained=None).eval()


def _images(side_px: int, n: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side_px, side_px, 3), dtype=np.uint8)


def _prepared(model: Any, images: np.ndarray) -> torch.Tensor:
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    preparation = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    return torch.stack([preparation(Image.fromarray(image)) for image in images])


def _loaded(name: str, model: Any, folder: Path, **options: Any) -> Encoder:
    path = folder / "open_clip_model.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path)
    return load_encoder(f"openclip/{name}", weights=path, device="cpu", precision="fp32", **options)


@pytest.mark.parametrize("name", [*_TOWERS, "test-coca"])
def test_vectors_equal_encode_image_on_the_same_weights(name: str, tmp_path: Path) -> None:
    model = _whole_model(name)
    encoder = _loaded(name, model, tmp_path)
    images = _images(encoder.input_px)
    with torch.inference_mode():
        pixels = _prepared(model, images)
        # CoCa's own method can only give unit length.
        expected = model.visual(pixels)[0] if name == "test-coca" else model.encode_image(pixels, normalize=False)
    vectors = encoder.embed(images)
    assert vectors.shape == (3, 32)
    np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-4 * float(expected.abs().max()))
    np.testing.assert_array_equal(encoder.embed(images[1:2])[0], vectors[1])
    for value in (0, 255):
        assert np.isfinite(encoder.embed(np.full_like(images[:1], value))).all()


@pytest.mark.parametrize("name", [*_TOWERS, "test-coca"])
def test_every_pooling_and_map_has_the_shape_of_the_record(name: str) -> None:
    record = get_record(f"openclip/{name}")
    network = openclip.build(record).eval()
    pixels = torch.zeros(2, 3, record.input_px, record.input_px)
    with torch.inference_mode():
        for pooling in record.poolings:
            assert tuple(network.vectors(pixels, pooling).shape) == (2, record.dim_of(pooling))
        maps = network.maps(pixels, record.feature_layers)
    if record.patch_size:
        assert {tuple(item.shape[2:]) for item in maps} == {(record.input_px // record.patch_size,) * 2}
    assert len(maps) == len(record.feature_layers)


def test_tokens_are_those_of_the_tower_after_its_last_norm(tmp_path: Path) -> None:
    model = _whole_model("test-own-vit")
    model.visual.output_tokens = True  # open_clip then gives the normalised patch tokens beside its vector
    images = _images(64)
    with torch.inference_mode():
        _, patches = model.visual(_prepared(model, images))
    encoder = _loaded("test-own-vit", model, tmp_path, pooling="mean")
    assert encoder.embed_dim == 64
    expected = patches.mean(1).numpy()
    np.testing.assert_allclose(encoder.embed(images), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("name", "side_px"), [("test-own-vit", 96), ("test-timm-vit", 96)])
def test_other_sizes_equal_a_model_made_for_that_size(name: str, side_px: int, tmp_path: Path) -> None:
    encoder = _loaded(name, _whole_model(name), tmp_path, input_px=side_px)
    with torch.random.fork_rng(devices=[]):
        model = open_clip.create_model(
            name, pretrained=str(tmp_path / "open_clip_model.safetensors"), force_image_size=side_px
        ).eval()
    images = _images(side_px)
    with torch.inference_mode():
        expected = model.encode_image(_prepared(model, images)).numpy()
    np.testing.assert_allclose(encoder.embed(images), expected, atol=1e-4 * np.abs(expected).max())
    assert encoder.feature_maps(images)[0].shape[2] == side_px // 16


def test_record_of_a_published_architecture_needs_no_network() -> None:
    record = get_record("openclip/ViT-B-16:laion2b_s34b_b88k")
    assert (record.source, record.weights_file) == (
        "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
        "open_clip_pytorch_model.bin",
    )
    assert (record.embed_dim, record.dim_of("cls"), record.input_px, record.patch_size) == (512, 768, 224, 16)
    assert record.mean == (0.48145466, 0.4578275, 0.40821073)
    assert record.feature_layers == (2, 5, 8, 11)


def test_activation_is_the_one_that_the_weights_were_trained_with() -> None:
    assert get_record("openclip/ViT-B-32:openai").architecture_options["quick_gelu"]
    assert get_record("openclip/ViT-B-32-quickgelu").architecture_options["quick_gelu"]
    assert not get_record("openclip/ViT-B-32").architecture_options["quick_gelu"]


def test_unknown_architectures_and_tags_are_met_with_the_nearest() -> None:
    with pytest.raises(UnknownEncoderError, match="Did you mean 'ViT-B-16'"):
        get_record("openclip/ViT-B-17")
    with pytest.raises(UnknownEncoderError, match="Did you mean 'laion2b_s34b_b88k'"):
        get_record("openclip/ViT-B-16:laion2b_s34b")


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("WSI_DINO_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.usefixtures("_offline")
def test_missing_weights_are_explained() -> None:
    with pytest.raises(WeightsError, match=r"openclip/ViT-B-32:TAG, TAG one of .*laion2b_s34b_b79k"):
        load_encoder("openclip/ViT-B-32")
    with pytest.raises(HubError, match=r"open_clip_model\.safetensors of laion/CLIP-ViT-B-32"):
        load_encoder("openclip/ViT-B-32:laion2b_s34b_b79k")


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_either_name_of_the_file_is_found_in_a_folder_and_in_the_cache(file: str, tmp_path: Path) -> None:
    record = get_record("openclip/ViT-B-32:laion2b_s34b_b79k")
    revision = "1a25a446712ba5ee05982a381eed697ef9b435cf"
    cache = tmp_path / "hub" / f"models--{record.source.replace('/', '--')}"
    cached, in_folder = cache / "snapshots" / revision / file, tmp_path / "weights" / record.source / file
    for path in (cached, in_folder, cache / "refs" / "main"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(revision)
    found = openclip.locate(record, None, None)
    assert (found.path, found.source, found.revision) == (cached, "cache", revision)
    assert openclip.locate(record, None, tmp_path / "weights").path == in_folder


def test_other_name_is_tried_when_a_repository_lacks_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(wanted: hub.HubFile) -> Any:
        asked.append(wanted.file)
        raise HubError("gated" if wanted.file.endswith(".bin") else "absent", "terms" if wanted.file.endswith(".bin")
                       else "no-file")  # fmt: skip

    monkeypatch.setattr("wsi_dino.encoders.weights.ask_hub", refuse)
    with pytest.raises(HubError, match="gated"):
        openclip.locate(get_record("openclip/ViT-B-32:laion2b_s34b_b79k"), None, None)
    assert asked == ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]


def test_checkpoint_of_another_tower_names_the_first_keys_that_differ(tmp_path: Path) -> None:
    save_file(_whole_model("test-resnet").state_dict(), tmp_path / "resnet.safetensors")
    with pytest.raises(WeightsError, match=r"Missing in the file \(\d+\): model\.class_embedding"):
        load_encoder("openclip/test-own-vit", weights=tmp_path / "resnet.safetensors")


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(EncoderError, match=r"pip install 'wsi_dino\[openclip\]'"):
        get_record("openclip/ViT-B-16")
