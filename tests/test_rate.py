"""The measured rate of an encoder: what was counted, and on what. No test asserts a time."""

from __future__ import annotations

import pytest

from wsi_dino.encoders.loading import load_encoder
from wsi_dino.encoders.rate import measure_rate, measure_rate_of
from wsi_dino.errors import EncoderError, UnknownEncoderError


@pytest.mark.parametrize("maps", [False, True])
def test_a_rate_is_of_whole_batches_and_says_on_what(maps: bool) -> None:
    encoder = load_encoder("efficientnet-lite0", input_px=64, device="cpu", workers=1)
    rate = measure_rate(encoder, maps=maps, sample_s=0)
    assert rate.n_images == 2 * encoder.batch_size
    assert (rate.encoder, rate.input_px, rate.device, rate.weights) == ("efficientnet-lite0", 64, "cpu", "package")
    assert rate.images_per_s == rate.n_images / rate.seconds > 0
    assert rate.device_name in rate.sentence()
    assert rate.as_dict()["images_per_s"] == rate.images_per_s
    if not maps:
        assert rate.output_bytes == 4 * encoder.embed_dim


def test_an_encoder_without_weights_here_is_measured_untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rate = measure_rate_of("dinov3-s", input_px=32, device="cpu", workers=1, sample_s=0)
    assert (rate.weights, rate.encoder) == ("random:0", "dinov3-s")


def test_a_wrong_name_or_device_is_told_at_once() -> None:
    with pytest.raises(UnknownEncoderError):
        measure_rate_of("efficientnet-lite")
    with pytest.raises(EncoderError, match="device"):
        measure_rate_of("efficientnet-lite0", device="tpu")
