"""BiomedCLIP's image tower against open_clip's own on the same random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wsi_dino.encoders.encoder import Encoder
from wsi_dino.encoders.loading import load_encoder
from wsi_dino.encoders.registry import get_record
from wsi_dino.encoders.torchvision_guard import ensure_torchvision
from wsi_dino.errors import WeightsError

_N_IMAGES = 2


@pytest.fixture(scope="module")
def tower() -> Any:
    """Return the image tower that open_clip builds from the settings in the model's own configuration file."""
    ensure_torchvision()
    pytest.importorskip("open_clip", reason="open_clip comes with the extra openclip")
    from open_clip.timm_model import TimmModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TimmModel("vit_base_patch16_224", embed_dim=512, image_size=224, pool="", proj="linear").eval()
        torch.nn.init.normal_(network.head.proj.weight, std=0.05)
    return network


@pytest.fixture(scope="module")
def checkpoint(tower: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with the names of the published one: the tower, some of the text's tensors, the scale."""
    state = {f"visual.{key}": tensor.contiguous() for key, tensor in tower.state_dict().items()}
    state |= {"text.proj.0.weight": torch.zeros(640, 768), "logit_scale": torch.zeros(())}
    path = tmp_path_factory.mktemp("biomedclip") / "open_clip_pytorch_model.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> Encoder:
    return load_encoder("biomedclip", weights=checkpoint, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (_N_IMAGES, 224, 224, 3), dtype=np.uint8)


def _as_open_clip_prepares(images: np.ndarray) -> torch.Tensor:
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    preparation = image_transform_v2(PreprocessCfg(size=224), is_train=False)
    return torch.stack([preparation(Image.fromarray(image)) for image in images])


def test_projected_vectors_equal_open_clips(tower: Any, encoder: Encoder, images: np.ndarray) -> None:
    with torch.inference_mode():
        expected = tower(_as_open_clip_prepares(images)).numpy()
    vectors = encoder.embed(images)
    assert vectors.shape == (_N_IMAGES, 512)
    np.testing.assert_allclose(vectors, expected, atol=1e-4 * np.abs(expected).max())


def test_tokens_before_the_projection_are_those_of_the_trunk(tower: Any, encoder: Encoder, images: np.ndarray) -> None:
    pixels = _as_open_clip_prepares(images[:1])
    with torch.inference_mode():
        tokens = tower.trunk.forward_features(pixels)
        ours = encoder._backbone.vectors(pixels, "cls+mean")
    expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)
    torch.testing.assert_close(ours, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_contract_holds_on_uniform_images() -> None:
    encoder = load_encoder("biomedclip", random_weights=0, input_px=64, device="cpu", precision="fp32")
    images = np.stack([np.full((64, 64, 3), value, np.uint8) for value in (0, 255, 128)])
    vectors = encoder.embed(images)
    assert np.isfinite(vectors).all()
    np.testing.assert_array_equal(encoder.embed(images[1:2])[0], vectors[1])


def test_record_names_the_paper_and_the_published_file() -> None:
    record = get_record("biomedclip")
    assert record.paper == "BiomedCLIP"
    assert (record.dim_of("projected"), record.dim_of("cls"), record.dim_of("cls+mean")) == (512, 768, 1536)
    assert record.weights_file == "open_clip_pytorch_model.bin"


def test_a_checkpoint_without_the_projection_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    save_file({"visual.trunk.cls_token": torch.zeros(1, 1, 768)}, path)
    with pytest.raises(WeightsError, match="another architecture") as trouble:
        load_encoder("biomedclip", weights=path)
    assert "Missing in the file" in str(trouble.value)
