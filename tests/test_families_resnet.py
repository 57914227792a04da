"""ResNet-50 under every training: stages against torchvision's graph, names of files, TensorFlow's padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from random_checkpoint import assert_close, enliven, loaded, noise_images, saved
from torch import Tensor
from torch.nn import functional

from wsi_dino.encoders.registry import get_record
from wsi_dino.encoders.torchvision_guard import ensure_torchvision
from wsi_dino.errors import WeightsError


@pytest.fixture(scope="module")
def theirs() -> Any:
    ensure_torchvision()
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed", exc_type=ImportError)
    return enliven(torchvision.models.resnet50(weights=None))


def _stages(network: Any, images: Tensor) -> list[Tensor]:
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    maps = []
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = layer(x)
        maps.append(x)
    return maps


@pytest.mark.parametrize("side_px", [224, 160])
def test_stages_equal_torchvisions(theirs: Any, side_px: int, tmp_path: Path) -> None:
    path = saved(theirs.state_dict(), tmp_path / "resnet50.pth")
    images = noise_images(1, side_px)
    with torch.inference_mode():
        expected = _stages(theirs, images)
        for name in ("resnet50", "resnet50-clam"):
            backbone = loaded(get_record(name), path)
            for ours, other in zip(
                backbone.maps(images, get_record(name).feature_layers), expected, strict=name == "resnet50"
            ):
                assert_close(ours, other)
            last = expected[3 if name == "resnet50" else 2]
            assert_close(backbone.vectors(images, "avg"), last.mean((2, 3)))


@pytest.mark.parametrize("name", ["swav", "simclr"])
def test_self_supervised_files_load_under_their_names(name: str, theirs: Any, tmp_path: Path) -> None:
    trunk = theirs.state_dict()
    if name == "swav":
        heads = {"projection_head.0.weight": torch.ones(2048, 2048), "prototypes.weight": torch.ones(3000, 128)}
        without = {key: tensor for key, tensor in trunk.items() if not key.startswith("fc.")}
        content: dict[str, Any] = {f"module.{key}": tensor for key, tensor in {**without, **heads}.items()}
    else:
        content = {"state_dict": dict(trunk)}
    path = tmp_path / get_record(name).weights_file
    torch.save(content, path)
    images = noise_images(1, 224)
    with torch.inference_mode():
        ours = loaded(get_record(name), path).vectors(images, "avg")
        assert_close(ours, _stages(theirs, images)[3].mean((2, 3)))


def _padded_as_tensorflow(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """``SAME`` by its definition: output side ceil(side / stride), the odd pixel at the bottom and right."""
    total = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)
    before = total // 2
    return functional.pad(x, (before, total - before, before, total - before), value=value)


def _byol_by_definition(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Compute the last stage from the tensors alone, with explicit padding before every kernel."""

    def convolve(x: Tensor, name: str, stride: int) -> Tensor:
        weight = state[f"{name}.weight"]
        return functional.conv2d(_padded_as_tensorflow(x, weight.shape[-1], stride), weight, stride=stride)

    def norm(x: Tensor, name: str) -> Tensor:
        parts = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *parts)

    x = functional.relu(norm(convolve(images, "conv1", 2), "bn1"))
    x = functional.max_pool2d(_padded_as_tensorflow(x, 3, 2, -torch.inf), 3, 2)
    for layer, n_blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(n_blocks):
            here, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = functional.relu(norm(convolve(x, f"{here}.conv1", 1), f"{here}.bn1"))
            y = functional.relu(norm(convolve(y, f"{here}.conv2", stride), f"{here}.bn2"))
            y = norm(convolve(y, f"{here}.conv3", 1), f"{here}.bn3")
            if block == 0:
                x = norm(convolve(x, f"{here}.downsample.0", stride), f"{here}.downsample.1")
            x = functional.relu(x + y)
    return x


def test_byol_pads_as_it_was_trained(theirs: Any, tmp_path: Path) -> None:
    path = saved(theirs.state_dict(), tmp_path / "pretrain_res50x1.pth.tar")
    images = noise_images(1, 224)
    with torch.inference_mode():
        expected = _byol_by_definition(theirs.state_dict(), images)
        backbone = loaded(get_record("byol"), path)
        assert_close(backbone.maps(images, (4,))[0], expected)
        assert_close(backbone.vectors(images, "avg"), expected.mean((2, 3)))
        # Torch's own padding sees other pixels, so that the vectors differ.
        plain = _stages(theirs, images)[3].mean((2, 3))
        assert (expected.mean((2, 3)) - plain).abs().max() > 0.01 * plain.abs().max()


def test_prepared_byol_computes_the_same() -> None:
    """Folded batch norms and channels last, through the encoder."""
    import numpy as np

    from wsi_dino.encoders.loading import load_backbone, load_encoder

    encoder = load_encoder("byol", random_weights=0, device="cpu", precision="fp32")
    record = get_record("byol")
    plain = load_backbone(record, random_weights=0).backbone.eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (record.mean, record.std))
    with torch.inference_mode():
        expected = plain.vectors((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std, "avg")
    assert_close(torch.from_numpy(encoder.embed(images)), expected)


def test_another_network_is_refused(theirs: Any, tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in theirs.state_dict().items() if not key.startswith("layer2.3.")}
    with pytest.raises(WeightsError, match=r"Missing in the file \(15\): model\.layer2\.3\.conv1\.weight"):
        loaded(get_record("swav"), saved(state, tmp_path / "other.pth"))
