"""Networks of the transformers library: the same vectors as its own, from folders of the hub's form and its cache."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsi_dino.encoders.encoder import Encoder
from wsi_dino.encoders.loading import load_encoder
from wsi_dino.encoders.pixel_settings import read_pixel_settings
from wsi_dino.encoders.registry import get_record
from wsi_dino.encoders.torchvision_guard import ensure_torchvision
from wsi_dino.errors import EncoderError, HubError, WeightsError

ensure_torchvision()
transformers = pytest.importorskip("transformers", reason="transformers comes with the extra transformers")

_REVISION = "0123456789abcdef0123456789abcdef01234567"
_SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
_VIT = {**_SMALL, "image_size": 64, "patch_size": 16}
_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
# Kind, settings, tokens before the patches.
_KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "vit": (_VIT, 1),
    "deit": (_VIT, 2),
    "vit_mae": (_VIT, 1),
    "beit": (_VIT, 1),
    "dinov2": (_VIT, 1),
    "dinov2_with_registers": ({**_VIT, "num_register_tokens": 4}, 5),
    "dinov3_vit": ({**_VIT, "num_register_tokens": 4}, 5),
    "clip_vision_model": (_VIT, 1),
    "siglip_vision_model": (_VIT, 0),
    "convnext": ({**_STAGES, "image_size": 64}, 0),
    "resnet": ({**_STAGES, "embedding_size": 8, "layer_type": "basic"}, 0),
    "swin": ({"image_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}, 0),
}
_PREPARATION = {"size": {"height": 64, "width": 64}, "resample": 3, "image_mean": [0.5, 0.4, 0.3],
                "image_std": [0.2, 0.25, 0.3], "do_resize": True, "do_normalize": True, "do_rescale": True,
                "rescale_factor": 1 / 255, "image_processor_type": "ViTImageProcessor"}  # fmt: skip


def _network(kind: str, seed: int = 0) -> Any:
    config = transformers.CONFIG_MAPPING[kind](**_KINDS[kind][0])
    if kind == "vit_mae":
        config.mask_ratio = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = transformers.AutoModel.from_config(config).eval()
        for key, parameter in network.named_parameters():
            # Layer scales and norms begin so small or so plain that mistakes in them would not show.
            if parameter.ndim == 1:
                parameter.data = 0.5 + 0.1 * torch.randn_like(parameter) if "weight" in key or "lambda" in key else (
                    0.1 * torch.randn_like(parameter))  # fmt: skip
    return network


def _save(network: Any, folder: Path, **options: Any) -> Path:
    network.save_pretrained(folder, **options)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PREPARATION))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _save(_network("dinov2"), tmp_path / "dinov2-tiny")


@pytest.fixture(autouse=True)
def _offline_with_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("WSI_DINO_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def _images(n: int = 3, side_px: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side_px, side_px, 3), dtype=np.uint8)


def _prepared(images: np.ndarray) -> torch.Tensor:
    """Prepare with the library's own processor."""
    processor = transformers.ViTImageProcessor(**{k: v for k, v in _PREPARATION.items() if k != "image_processor_type"})
    return processor([*images], return_tensors="pt", input_data_format="channels_last")["pixel_values"]


def _loaded(folder: Path, **options: Any) -> Encoder:
    return load_encoder(f"hf/{folder}", device="cpu", precision="fp32", **options)


def _expected(network: Any, pixels: torch.Tensor, kind: str, with_layers: bool = False) -> Any:
    noise = {"noise": torch.arange(16).float().repeat(len(pixels), 1)} if kind == "vit_mae" else {}
    with torch.inference_mode():
        return network(pixel_values=pixels, output_hidden_states=with_layers, **noise)


@pytest.mark.parametrize("kind", _KINDS)
def test_every_pooling_equals_transformers_on_the_same_weights(kind: str, tmp_path: Path) -> None:
    network, n_prefix = _network(kind), _KINDS[kind][1]
    folder = _save(network, tmp_path / kind)
    images = _images()
    output = _expected(network, _prepared(images), kind)
    last = output.last_hidden_state
    by_pooling = {"avg": last.mean((2, 3))} if last.ndim == 4 else {"mean": last[:, n_prefix:].mean(1)}
    if n_prefix:
        by_pooling |= {"cls": last[:, 0], "cls+mean": torch.cat([last[:, 0], last[:, n_prefix:].mean(1)], dim=1)}
    if getattr(output, "pooler_output", None) is not None:
        by_pooling["pooler"] = output.pooler_output.flatten(1)
    assert set(get_record(f"hf/{folder}").poolings) == set(by_pooling)
    encoder = _loaded(folder)
    for pooling, expected in by_pooling.items():
        vectors = encoder.altered(pooling=pooling).embed(images)
        np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-4 * float(expected.abs().max()), err_msg=pooling)


@pytest.mark.parametrize("kind", _KINDS)
def test_contract_and_maps_of_every_kind(kind: str, tmp_path: Path) -> None:
    network, n_prefix = _network(kind), _KINDS[kind][1]
    encoder = _loaded(_save(network, tmp_path / kind))
    images = np.concatenate([np.zeros_like(_images(1)), np.full_like(_images(1), 255), _images(2)])
    vectors = encoder.embed(images)
    assert np.isfinite(vectors).all()
    np.testing.assert_array_equal(encoder.embed(images[::-1])[::-1], vectors)
    np.testing.assert_array_equal(encoder.embed(images[2:3])[0], vectors[2])
    output = _expected(network, _prepared(images), kind, with_layers=True)
    hidden = getattr(output, "reshaped_hidden_states", None) or output.hidden_states
    maps = encoder.feature_maps(images)
    assert len(maps) == len(encoder.spec.feature_layers) > 0
    for layer, item in zip(encoder.spec.feature_layers, maps, strict=True):
        expected = hidden[layer + 1]
        if expected.ndim == 3:
            expected = expected[:, n_prefix:].transpose(1, 2).reshape(len(images), -1, 4, 4)
        torch.testing.assert_close(item, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov3_vit", "clip_vision_model", "siglip_vision_model"])
def test_other_sizes_are_those_of_transformers_own_interpolation(kind: str, tmp_path: Path) -> None:
    network = _network(kind)
    encoder = _loaded(_save(network, tmp_path / kind), input_px=96, pooling="mean")
    images = _images(side_px=96)
    mean, std = (torch.tensor(_PREPARATION[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    asked = {} if kind.startswith("dinov") else {"interpolate_pos_encoding": True}
    with torch.inference_mode():
        tokens = network(pixel_values=pixels, **asked).last_hidden_state
    expected = tokens[:, _KINDS[kind][1] :].mean(1)
    np.testing.assert_allclose(encoder.embed(images), expected.numpy(), atol=1e-4 * float(expected.abs().max()))
    assert encoder.feature_maps(images)[0].shape[2:] == (6, 6)


def test_default_pooling_is_normed() -> None:
    """CLIP norms what it pools and not its tokens; DINOv2's CLS is normed; SigLIP has no CLS."""
    from wsi_dino.encoders.transformers_probe import probe

    for kind, pooling in (("dinov2", "cls"), ("vit", "cls"), ("clip_vision_model", "pooler"),
                          ("siglip_vision_model", "pooler"), ("beit", "pooler"), ("convnext", "pooler")):  # fmt: skip
        settings = {**_KINDS[kind][0], "model_type": kind}
        assert probe(settings, 64, "hf/x", 64).default_pooling == pooling, kind


def test_image_tower_is_taken_out_of_a_model_of_image_and_text(tmp_path: Path) -> None:
    text = {**_SMALL, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = transformers.CLIPConfig(vision_config={**_VIT}, text_config=text, projection_dim=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = transformers.CLIPModel(config).eval()
    folder = _save(network, tmp_path / "clip")
    images = _images()
    with torch.inference_mode():
        expected = network.vision_model(pixel_values=_prepared(images)).pooler_output.numpy()
    encoder = _loaded(folder)
    assert "text_config" not in encoder.spec.architecture_options["config"]
    np.testing.assert_allclose(encoder.embed(images), expected, atol=1e-4 * np.abs(expected).max())


def test_classifier_in_the_checkpoint_is_left_out_and_a_missing_pooler_noticed(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = transformers.ViTForImageClassification(transformers.ViTConfig(**_VIT)).eval()
    folder = _save(classifier, tmp_path / "classifier")
    images = _images()
    with torch.inference_mode():
        expected = classifier.vit(pixel_values=_prepared(images)).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(_loaded(folder).embed(images), expected, atol=1e-4 * np.abs(expected).max())
    assert "id2label" not in json.dumps(get_record(f"hf/{folder}").architecture_options)
    with pytest.raises(WeightsError, match="hold no pooler"):
        _loaded(folder, pooling="pooler")


def test_random_weights_need_only_the_configuration(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    first, second = (_loaded(folder, random_weights=seed) for seed in (0, 0))
    np.testing.assert_array_equal(first.embed(_images()), second.embed(_images()))
    assert first.weights_sha256 == "random:0"
    with pytest.raises(WeightsError, match=r"has no model\.safetensors"):
        _loaded(folder)


def test_weights_in_several_parts_and_pickles_are_the_same_network(tmp_path: Path) -> None:
    network = _network("dinov2")
    whole = _save(network, tmp_path / "whole")
    parts = _save(network, tmp_path / "parts", max_shard_size="20KB")
    assert (parts / "model.safetensors.index.json").is_file()
    pickle = tmp_path / "pickle"
    shutil.copytree(whole, pickle)
    (pickle / "model.safetensors").unlink()
    torch.save(network.state_dict(), pickle / "pytorch_model.bin")
    images = _images()
    expected = _loaded(whole).embed(images)
    encoders = [_loaded(place) for place in (parts, pickle)]
    for encoder in encoders:
        np.testing.assert_array_equal(encoder.embed(images), expected)
        assert len(encoder.weights_sha256) == 64
    index = parts / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../whole/model.safetensors"}}))
    with pytest.raises(WeightsError, match="does not list the files of its parts"):
        _loaded(parts)


def _in_cache(folder: Path, cache: Path, repository: str) -> None:
    place = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / _REVISION)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(_REVISION)


def test_files_are_found_in_folder_then_cache_at_one_commit(folder: Path, tmp_path: Path) -> None:
    _in_cache(folder, tmp_path / "hub", "someone/tiny")
    images = _images()
    from_cache = load_encoder("hf/someone/tiny", device="cpu", precision="fp32")
    assert (from_cache.weights_source, from_cache.spec.revision) == ("hub", _REVISION)
    assert from_cache.spec.source == "someone/tiny"
    other = _save(_network("dinov2", seed=1), tmp_path / "weights" / "someone" / "tiny")
    from_folder = load_encoder("hf/someone/tiny", device="cpu", precision="fp32", weights_dir=tmp_path / "weights")
    assert from_folder.weights_source == "file"
    np.testing.assert_array_equal(from_folder.embed(images), _loaded(other).embed(images))
    for given in (other, other / "model.safetensors"):
        named = load_encoder("hf/someone/tiny", device="cpu", precision="fp32", weights=given)
        np.testing.assert_array_equal(named.embed(images), from_folder.embed(images))
    np.testing.assert_array_equal(from_cache.embed(images), _loaded(folder).embed(images))


def test_weights_file_alone_takes_the_configuration_from_the_cache(folder: Path, tmp_path: Path) -> None:
    _in_cache(folder, tmp_path / "hub", "someone/tiny")
    alone = tmp_path / "alone" / "mine.safetensors"
    alone.parent.mkdir()
    shutil.copy(folder / "model.safetensors", alone)
    encoder = load_encoder("hf/someone/tiny", device="cpu", precision="fp32", weights=alone)
    assert encoder.weights_source == "file"
    np.testing.assert_array_equal(encoder.embed(_images()), _loaded(folder).embed(_images()))


def test_relative_folders_are_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    record = get_record("hf/./dinov2-tiny")
    assert record.source == "folder:dinov2-tiny"
    assert record.embed_dim == 32
    assert (record.mean, record.std, record.interpolation) == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "bicubic")


def test_nothing_is_asked_of_the_network_when_it_is_forbidden() -> None:
    with pytest.raises(HubError, match=r"(?s)hf/someone/absent.*give hf/FOLDER") as trouble:
        get_record("hf/someone/absent")
    assert trouble.value.kind == "offline"
    with pytest.raises(WeightsError, match=r"there is no folder \./absent with a config\.json"):
        get_record("hf/./absent")


def test_refusal_of_a_gated_repository_names_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    class _Answer:
        status_code, headers = 401, {}

    def refuse(*_: Any, **__: Any) -> Any:
        error = GatedRepoError.__new__(GatedRepoError)
        Exception.__init__(error, "gated")
        error.response = _Answer()
        raise error

    monkeypatch.delenv("WSI_DINO_OFFLINE")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    with pytest.raises(HubError, match=r"(?s)huggingface\.co/someone/gated.*give hf/FOLDER"):
        get_record("hf/someone/gated")


def test_missing_preparation_is_not_guessed(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match=r"has no preprocessor_config\.json, so that mean and deviation"):
        get_record(f"hf/{folder}")
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": _PREPARATION}))
    assert get_record(f"hf/{folder}").mean == (0.5, 0.4, 0.3)


def test_weights_of_another_network_name_what_is_missing(folder: Path, tmp_path: Path) -> None:
    other = _save(_network("convnext"), tmp_path / "convnext")
    with pytest.raises(WeightsError, match="missing in the file") as trouble:
        _loaded(_mixed(folder, other, tmp_path))
    assert "not of this Dinov2Model" in str(trouble.value)


def _mixed(settings: Path, weights: Path, tmp_path: Path) -> Path:
    mixed = tmp_path / "mixed"
    shutil.copytree(settings, mixed)
    shutil.copy(weights / "model.safetensors", mixed / "model.safetensors")
    return mixed


def test_networks_of_text_and_remote_code_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "bert"
    transformers.BertConfig(**_SMALL, vocab_size=16).save_pretrained(text)
    (text / "preprocessor_config.json").write_text(json.dumps(_PREPARATION))
    with pytest.raises(EncoderError, match="expected a network of one image, but a BertModel"):
        get_record(f"hf/{text}")
    (text / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoModel": "own.Model"}}))
    with pytest.raises(EncoderError, match=r"no network of model_type 'own'.* code of its own, which is never run"):
        get_record(f"hf/{text}")
    (text / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="cannot be read as JSON"):
        get_record(f"hf/{text}")


def test_missing_library_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EncoderError, match=r"pip install 'wsi_dino\[transformers\]'"):
        get_record(f"hf/{folder}")


@pytest.mark.parametrize(
    ("content", "input_px", "crop_fraction"),
    [
        ({"size": 224, "do_center_crop": False}, 224, 1.0),
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True}, 224, 0.875),
        ({"size": {"shortest_edge": 256}, "crop_size": 224}, 256, 1.0),
        ({"do_resize": False, "size": 224}, None, 1.0),
    ],
)
def test_sides_in_a_preparation(content: dict[str, Any], input_px: int | None, crop_fraction: float) -> None:
    both = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    settings = read_pixel_settings(content | both, "hf/x", "preprocessor_config.json")
    assert (settings.input_px, settings.crop_fraction) == (input_px, crop_fraction)


def test_other_rescale_factors_become_mean_and_deviation_of_0_to_1() -> None:
    content = {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3, "size": 64}
    settings = read_pixel_settings(content, "hf/x", "preprocessor_config.json")
    assert settings.mean == pytest.approx((0.5,) * 3)
    assert settings.std == pytest.approx((0.5,) * 3)
    plain = read_pixel_settings({"do_normalize": False, "size": 64}, "hf/x", "preprocessor_config.json")
    assert (plain.mean, plain.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_mean": [0.5], "image_std": [0.5] * 3}, "expected image_mean for three channels"),
        ({"size": {"height": 224, "width": 448}}, "expected a square"),
        ({"size": {"shortest_edge": "big"}}, "expected a side in pixels"),
    ],
)
def test_wrong_preparations_are_named(content: dict[str, Any], message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        read_pixel_settings({"image_mean": [0.5] * 3, "image_std": [0.5] * 3} | content, "hf/x", "a.json")
