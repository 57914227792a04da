"""Number formats: what `auto` takes, and how near to fp32 the vectors of each stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsi_dino.encoders import devices
from wsi_dino.encoders.devices import candidate_formats
from wsi_dino.encoders.faithfulness import LEAST_COSINE, generated_tiles, least_cosine
from wsi_dino.encoders.loading import load_encoder
from wsi_dino.errors import EncoderError

_ALL = ("fp32", "bf16", "fp16")
_VIT_TINY = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.fixture
def bf16_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that multiplies bf16, whatever this one does."""
    monkeypatch.setattr(devices, "cpu_multiplies_bf16", lambda: True)


@pytest.mark.usefixtures("bf16_cpu")
def test_convolutions_on_a_cpu_stay_in_fp32_where_torch_lacks_the_fused_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_fused_convolution", lambda: False)
    assert candidate_formats("auto", "cpu", _ALL, is_convolutional=True) == ("fp32",)
    assert candidate_formats("auto", "cpu", _ALL, is_convolutional=False) == ("bf16", "fp32")
    monkeypatch.setattr(devices, "has_fused_convolution", lambda: True)
    assert candidate_formats("auto", "cpu", _ALL, is_convolutional=True) == ("bf16", "fp32")


@pytest.mark.usefixtures("bf16_cpu")
def test_auto_never_takes_what_the_record_or_the_runtime_lacks() -> None:
    assert candidate_formats("auto", "cpu", ("fp32",)) == ("fp32",)
    assert candidate_formats("auto", "cpu", _ALL, runtime="onnxruntime") == ("fp32",)
    assert candidate_formats("auto", "cpu", _ALL, runtime="openvino") == ("bf16", "fp32")


def test_auto_is_fp32_on_a_cpu_that_does_not_multiply_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_multiplies_bf16", lambda: False)
    assert candidate_formats("auto", "cpu", _ALL) == ("fp32",)


@pytest.mark.parametrize(
    ("precision", "runtime", "words"),
    [
        ("int8", "torch", "--runtime openvino or onnxruntime has it"),
        ("bf16", "onnxruntime", "runs in int8, fp32, not in 'bf16'"),
        ("fp16", "openvino", "hundred times slower"),
        ("fp8", "openvino", "got 'fp8'"),
    ],
)
def test_a_format_that_is_not_to_be_had_is_named(precision: str, runtime: str, words: str) -> None:
    with pytest.raises(EncoderError, match=words):
        candidate_formats(precision, "cpu", _ALL, runtime=runtime)  # type: ignore[arg-type]


def test_convolutions_on_a_gpu_take_fp16_before_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_is_bf16_fast", lambda device: True)
    assert candidate_formats("auto", "cuda", _ALL, is_convolutional=True) == ("fp16",)
    assert candidate_formats("auto", "cuda", ("fp32", "bf16"), is_convolutional=True) == ("bf16",)
    assert candidate_formats("auto", "cuda", _ALL) == ("bf16",)


def test_generated_tiles_are_always_the_same_and_go_from_tissue_to_glass() -> None:
    tiles = generated_tiles(96)
    assert tiles.shape == (12, 96, 96, 3)
    assert tiles.dtype == np.uint8
    np.testing.assert_array_equal(tiles, generated_tiles(96))
    contrast = tiles.reshape(len(tiles), -1).std(1)
    assert contrast[0] > 30
    assert contrast[-1] < 3


def test_least_cosine_sees_the_one_row_that_is_off() -> None:
    good = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    bad = good.copy()
    bad[3] = -bad[3]
    assert least_cosine(good * 2, good) == pytest.approx(1)
    assert least_cosine(bad, good) == pytest.approx(-1)
    bad[3] = np.nan
    assert least_cosine(bad, good) == -1


def test_what_auto_takes_is_true_to_fp32_on_real_tissue(shared_data: Path) -> None:
    """A vision transformer in bf16 keeps its stream in fp32; convolutions are measured before they are taken."""
    from PIL import Image

    paths = sorted((shared_data / "histology_tiles").rglob("*.jp*g"))[::60]
    tiles = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    (checkpoint,) = (shared_data / "weights").glob("vit_tiny*")
    for name, weights in ((_VIT_TINY, checkpoint), ("efficientnet-lite0", None)):
        full, chosen = (
            load_encoder(name, weights=weights, device="cpu", precision=precision) for precision in ("fp32", "auto")
        )
        assert least_cosine(chosen.embed(tiles), full.embed(tiles)) >= LEAST_COSINE


def test_prepared_bf16_convolutions_turn_vectors_less_than_plain_ones(shared_data: Path) -> None:
    """Both are too coarse for a few tiles of EfficientNet, so that its record does without bf16."""
    import torch
    from PIL import Image

    from wsi_dino.encoders.convolution_preparation import has_fused_convolution
    from wsi_dino.encoders.loading import load_backbone
    from wsi_dino.encoders.preparation import fold_for_inference, prepare_for_inference
    from wsi_dino.encoders.registry import get_record

    if not has_fused_convolution():
        pytest.skip("this torch has no convolution of bf16 pixels with an fp32 bias")
    record = get_record("efficientnet-lite0")
    paths = sorted((shared_data / "histology_tiles").rglob("*.jp*g"))[::100]
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    full, plain, prepared = (load_backbone(record).backbone for _ in range(3))
    full, plain = (fold_for_inference(network, record, 224) for network in (full, plain))
    prepared = prepare_for_inference(prepared, record, 224, "cpu", torch.bfloat16)
    with torch.inference_mode():
        expected = full.vectors(pixels, "avg").numpy()
        naive = plain.bfloat16().vectors(pixels.bfloat16(), "avg").float().numpy()
        ours = prepared.vectors(pixels.bfloat16(), "avg").float().numpy()
    assert least_cosine(naive, expected) < least_cosine(ours, expected)
    assert "bf16" not in record.precisions


def test_bf16_in_the_branches_alone_is_nearer_to_fp32_than_bf16_throughout() -> None:
    import torch

    from wsi_dino.encoders.registry import family_of, get_record
    from wsi_dino.encoders.vit_preparation import keep_stream_in_fp32

    record = get_record("timm/test_vit.r160_in1k")
    networks = []
    for _ in range(3):
        torch.manual_seed(0)
        networks.append(family_of(record).build(record).eval().requires_grad_(False))
    full, branches, all_of_it = networks
    assert keep_stream_in_fp32(branches) == len(branches.model.blocks)
    all_of_it.bfloat16()
    pixels = torch.randn(4, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = full.vectors(pixels, record.pooling)
        near = branches.vectors(pixels, record.pooling)
        far = all_of_it.vectors(pixels.bfloat16(), record.pooling).float()
    assert 0 < (near - expected).norm() < (far - expected).norm()
