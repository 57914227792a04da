"""Other runtimes: the vectors of torch in fp32, or a refusal that says how far they are off."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from wsi_dino.encoders import faithfulness
from wsi_dino.encoders.backbone import Backbone
from wsi_dino.encoders.choice import RunningChoice
from wsi_dino.encoders.encoder import Encoder
from wsi_dino.encoders.faithfulness import least_cosine
from wsi_dino.encoders.loading import load_encoder
from wsi_dino.encoders.registry import get_record
from wsi_dino.errors import EncoderError
from wsi_dino.pathology.embed_spec import EmbedSpec, EncoderTask

_LIBRARY = {"openvino": "openvino", "onnxruntime": "onnx"}  # onnxruntime also needs onnx, to write the network
_TINY = "timm/test_vit.r160_in1k"


def _noise(n: int, side_px: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side_px, side_px, 3), dtype=np.uint8)


def _load(name: str, **choices: object) -> Encoder:
    settings = {"random_weights": 0, "device": "cpu", "precision": "fp32", "workers": 2} | choices
    return load_encoder(name, **settings)  # type: ignore[arg-type]


@pytest.fixture(params=_LIBRARY)
def runtime(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(_LIBRARY[request.param], reason=f"{request.param} is an extra")
    pytest.importorskip(request.param, reason=f"{request.param} is an extra")
    return str(request.param)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side_px"), [("dinov3-s", 224), ("dinov3-s", 96), ("efficientnet-lite0", 64)])
def test_vectors_are_those_of_torch_at_any_allowed_size(runtime: str, name: str, side_px: int) -> None:
    """Rotary positions (DINOv3) and convolutions; of small images more than a chunk, and not a multiple of it."""
    ours = _load(name, input_px=side_px, runtime=runtime)
    images = _noise(3 if side_px == 224 else ours.chunk_size + 1, side_px)
    expected = _load(name, input_px=side_px).embed(images)
    got = ours.embed(images)
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(ours.embed(images[1:2])[0], got[1])


def test_a_vit_with_a_position_table_runs_too(runtime: str) -> None:
    images = _noise(3, 160)
    got, expected = (_load(_TINY, runtime=chosen, pooling="cls").embed(images) for chosen in (runtime, "torch"))
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())


def test_an_exported_network_has_one_pooling_and_no_maps(runtime: str) -> None:
    encoder = _load(_TINY, runtime=runtime)
    with pytest.raises(EncoderError, match="--runtime torch alone"):
        encoder.feature_maps(_noise(1, 160))
    other = next(pooling for pooling in encoder.spec.poolings if pooling != encoder.pooling)
    with pytest.raises(EncoderError, match=f"not {other.replace('+', '.')}"):
        encoder.altered(pooling=other).embed(_noise(1, 160))


@pytest.mark.slow
def test_int8_is_taken_or_refused_as_its_vectors_deserve(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Today it is refused for EfficientNet with the real weights, whose activations it rounds too coarsely."""
    pytest.importorskip("onnx", reason="quantisation needs the extra onnx")
    settings = {"random_weights": None, "precision": "int8", "runtime": runtime, "input_px": 64}
    measured: list[float] = []

    def measure(vectors: np.ndarray, expected: np.ndarray) -> float:
        measured.append(least_cosine(vectors, expected))
        return measured[-1]

    monkeypatch.setattr(faithfulness, "least_cosine", measure)
    try:
        refusal = "" if _load("efficientnet-lite0", **settings) else "never"
    except EncoderError as error:
        refusal = str(error)
    (cosine,) = measured
    assert 0.3 < cosine < 1
    assert bool(refusal) == (cosine < faithfulness.LEAST_COSINE)
    assert not refusal or f"cosine of only {cosine:.4f}" in refusal


# --- the gate, without any library ------------------------------------------------------------------


_ANGLES = {"fp32": 0.0, "bf16": 0.04, "int8": 0.1}  # cosines 1, 0.9992, 0.995


class _Fake:
    """An encoder whose vectors turn by an angle that depends on its number format."""

    spec = get_record("efficientnet-lite0")
    input_px = 32

    def __init__(self, backbone: Backbone, *, precision: str, runtime: str) -> None:
        self.precision, self.runtime, self._angle = precision, runtime, _ANGLES[precision]

    def embed(self, tiles: np.ndarray) -> np.ndarray:
        return np.tile(np.array([np.cos(self._angle), np.sin(self._angle)], np.float32), (len(tiles), 1))


@pytest.mark.parametrize(
    ("formats", "runtime", "taken"),
    [
        (["bf16", "fp32"], "openvino", ("bf16", "openvino")),
        (["int8", "fp32"], "openvino", ("fp32", "openvino")),
        (["int8", "fp32"], "torch", ("fp32", "torch")),
    ],
)
def test_the_first_faithful_format_is_taken(formats: list, runtime: str, taken: tuple[str, str]) -> None:
    chosen = faithfulness.first_faithful(_Fake, Backbone(), formats, runtime)  # type: ignore[arg-type]
    assert (chosen.precision, chosen.runtime) == taken


def test_a_lone_unfaithful_format_is_refused_with_the_figure() -> None:
    with pytest.raises(EncoderError, match=r"openvino in int8 .* cosine of only 0\.9950"):
        faithfulness.first_faithful(_Fake, Backbone(), ["int8"], "openvino")  # type: ignore[arg-type]


# --- asking wrongly, and what is told ----------------------------------------------------------------


def test_wrong_runtimes_are_named() -> None:
    record = get_record("dinov3-s")
    with pytest.raises(EncoderError, match="expected one of torch, torch-compile, openvino, onnxruntime"):
        RunningChoice.of(record, "cpu", "auto", "tensorrt")
    assert RunningChoice.of(record, "auto", "auto", "openvino").device == "cpu"
    with pytest.raises(EncoderError):
        RunningChoice.of(record, "cuda", "auto", "openvino")


def test_a_missing_library_is_a_message_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for module, extra in (("openvino", "openvino"), ("onnxruntime", "onnx")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(EncoderError, match=rf"wsi_dino\[{extra}\]"):
            _load(_TINY, runtime=module)


def test_a_network_that_cannot_be_exported_is_a_message(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("first\nUnsupported: aten::something")

    monkeypatch.setattr(torch.jit, "trace", refuse)
    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(EncoderError, match=r"cannot take its network .*aten::something"):
        _load(_TINY, runtime=runtime)


def test_the_runtime_is_part_of_what_was_asked_for() -> None:
    encoder = _load(_TINY)
    assert encoder.identity()["runtime"] == "torch"
    prints = {
        EncoderTask(encoder, EmbedSpec(precision=precision, runtime=name), 8).item_fingerprint("tiles")
        for precision in ("auto", "fp32")
        for name in ("torch", "openvino")
    }
    assert len(prints) == 4


def test_torch_compile_gives_the_vectors_it_was_compiled_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its code generator, which takes minutes here: that every call goes through what torch compiled."""
    import torch

    compiled: list[bool] = []

    def compile_(function: Callable, *, dynamic: bool) -> Callable:
        compiled.append(dynamic)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    images = _noise(2, 160)
    encoder = _load(_TINY, runtime="torch-compile")
    assert compiled == [False]
    np.testing.assert_array_equal(encoder.embed(images), _load(_TINY).embed(images))
    assert len(encoder.feature_maps(images)) == len(encoder.spec.feature_layers)
