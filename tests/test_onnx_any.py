"""ONNX files as encoders: the same vectors as the network they were exported from, and every wrong file named."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsi_dino.encoders.loading import load_encoder
from wsi_dino.encoders.onnx_file import external_files, file_sha256_with_external
from wsi_dino.encoders.registry import get_record
from wsi_dino.encoders.torchvision_guard import ensure_torchvision
from wsi_dino.errors import EncoderError, UnknownEncoderError, WeightsError
from wsi_dino.run_folder import safe_name

onnx = pytest.importorskip("onnx", reason="ONNX files are made with the package onnx (extra test)")
pytest.importorskip("onnxruntime", reason="onnxruntime comes with the extra onnx")

_HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def _images(n: int, side_px: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side_px, side_px, 3), dtype=np.uint8)


def _write(path: Path, nodes: list[Any], outputs: dict[str, list[Any]], *, shape: tuple[Any, ...] = ("n", 3, 32, 32),
           metadata: dict[str, str] | None = None) -> Path:  # fmt: skip
    """Write a graph whose input ``image`` has `shape`."""
    from onnx import TensorProto, helper

    declared = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in outputs.items()]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, list(shape))
    graph = helper.make_graph(nodes, "graph", [image], declared)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


def _channel_means(path: Path, **settings: Any) -> Path:
    """Write the network that gives the mean of every channel: what it must give is known by hand."""
    from onnx import helper

    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["vector"]),
    ]
    return _write(path, nodes, {"vector": ["n", 3]}, **settings)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Return a small ViT with random weights and the file that torch exports from it."""
    ensure_torchvision()
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2, img_size=64).eval()
    path = tmp_path_factory.mktemp("onnx") / "vit.onnx"
    # The exporter by tracing: it takes one second where the new one takes fifteen.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = torch.zeros(2, 3, 64, 64)
        torch.onnx.export(network, (image,), path, dynamo=False, input_names=["image"], dynamic_axes={"image": [0]})
    path.with_name("vit.onnx.json").write_text(json.dumps(_HALF))
    return network, path


def test_exported_network_gives_the_vectors_of_torch(exported: tuple[Any, Path]) -> None:
    network, path = exported
    encoder = load_encoder(f"onnx/{path}", device="cpu")
    images = _images(7, 64)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1).numpy()
    vectors = encoder.embed(images)
    assert (encoder.embed_dim, encoder.input_px, encoder.precision) == (192, 64, "fp32")
    np.testing.assert_allclose(vectors, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(encoder.embed(images), vectors)
    np.testing.assert_array_equal(encoder.embed(images[::-1])[::-1], vectors)
    np.testing.assert_array_equal(encoder.embed(images[5:6])[0], vectors[5])


def test_vectors_are_finite_on_black_white_and_noise(exported: tuple[Any, Path]) -> None:
    encoder = load_encoder(f"onnx/{exported[1]}", device="cpu")
    images = np.concatenate(
        [np.zeros((1, 64, 64, 3), np.uint8), np.full((1, 64, 64, 3), 255, np.uint8), _images(1, 64)]
    )
    vectors = encoder.embed(images)
    assert np.isfinite(vectors).all()
    assert len({vector.tobytes() for vector in vectors}) == 3


def test_larger_images_are_resized_to_the_side_of_the_file(tmp_path: Path) -> None:
    path = _channel_means(tmp_path / "means.onnx")
    images = np.full((2, 64, 64, 3), 51, np.uint8)
    vectors = load_encoder(f"onnx/{path}", device="cpu").embed(images)
    expected = (0.2 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(vectors, np.stack([expected, expected]), rtol=1e-5)


def test_assumed_mean_is_announced_and_a_stated_one_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _channel_means(tmp_path / "means.onnx")
    encoder = load_encoder(f"onnx/{path}", device="cpu")
    assert "Not stated, assumed: mean (ImageNet's), std (ImageNet's)" in capsys.readouterr().err
    assert "ImageNet" in encoder.spec.notes
    (tmp_path / "means.onnx.json").write_text(json.dumps(_HALF))
    stated = load_encoder(f"onnx/{path}", device="cpu")
    assert capsys.readouterr().err == ""
    assert stated.spec.mean == (0.5, 0.5, 0.5)
    np.testing.assert_allclose(stated.embed(np.full((1, 32, 32, 3), 255, np.uint8)), [[1.0, 1.0, 1.0]], rtol=1e-5)


def test_metadata_of_the_file_is_read_and_the_json_file_has_the_last_word(tmp_path: Path) -> None:
    stated = {"mean": "[0.25, 0.25, 0.25]", "std": "[0.5, 0.5, 0.5]", "licence": "MIT", "producer": "someone"}
    path = _channel_means(tmp_path / "means.onnx", metadata=stated)
    record = get_record(f"onnx/{path}")
    assert (record.mean, record.std, record.licence, record.notes) == ((0.25,) * 3, (0.5,) * 3, "MIT", "")
    (tmp_path / "means.onnx.json").write_text('{"mean": [0.5, 0.5, 0.5], "interpolation": "bilinear"}')
    record = get_record(f"onnx/{path}")
    assert (record.mean, record.std, record.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bilinear")


def test_file_of_fixed_batch_takes_any_number_of_images(tmp_path: Path) -> None:
    means = _channel_means(tmp_path / "any.onnx")
    fixed = _channel_means(tmp_path / "three.onnx", shape=(3, 3, 32, 32))
    images = _images(8, 32)
    free, three = (load_encoder(f"onnx/{path}", device="cpu").embed(images) for path in (means, fixed))
    np.testing.assert_allclose(three, free, rtol=1e-6)


def test_open_side_is_taken_from_the_json_file(tmp_path: Path) -> None:
    path = _channel_means(tmp_path / "open.onnx", shape=("n", 3, "h", "w"))
    assert get_record(f"onnx/{path}").input_px == 224
    (tmp_path / "open.onnx.json").write_text(json.dumps({**_HALF, "input_px": 96, "input_multiple_px": 32}))
    assert get_record(f"onnx/{path}").allows_px(128)
    assert load_encoder(f"onnx/{path}", device="cpu", input_px=64).embed(_images(1, 64)).shape == (1, 3)
    fixed = _channel_means(tmp_path / "fixed.onnx")
    with pytest.raises(EncoderError, match="32 px only, got 64"):
        load_encoder(f"onnx/{fixed}", device="cpu", input_px=64)


def _tokens(path: Path) -> Path:
    """Write the network whose tokens are the rows of the first channel: (batch, 32 tokens, 32)."""
    from onnx import TensorProto, helper

    bounds = [helper.make_node("Constant", [], [name], value=helper.make_tensor(name, TensorProto.INT64, [1], [value]))
              for name, value in (("zero", 0), ("one", 1))]  # fmt: skip
    nodes = [
        *bounds,
        helper.make_node("Slice", ["image", "zero", "one", "one"], ["first"]),
        helper.make_node("Squeeze", ["first", "one"], ["tokens"]),
    ]
    return _write(path, nodes, {"tokens": ["n", 32, 32]})


def test_tokens_need_a_pooling_and_get_it(tmp_path: Path) -> None:
    path = _tokens(tmp_path / "tokens.onnx")
    with pytest.raises(WeightsError, match="tokens is a row of tokens"):
        get_record(f"onnx/{path}")
    stated = {"mean": [0, 0, 0], "std": [1, 1, 1], "pooling": "mean", "n_prefix_tokens": 2}
    (tmp_path / "tokens.onnx.json").write_text(json.dumps(stated))
    images = _images(2, 32)
    rows = images[..., 0] / 255
    mean, cls = (load_encoder(f"onnx/{path}", device="cpu", pooling=name).embed(images) for name in (None, "cls"))
    np.testing.assert_allclose(mean, rows[:, 2:].mean(1), rtol=1e-5)
    np.testing.assert_allclose(cls, rows[:, 0], rtol=1e-5)


def test_maps_are_averaged_over_their_area(tmp_path: Path) -> None:
    from onnx import helper

    path = _write(
        tmp_path / "maps.onnx", [helper.make_node("Identity", ["image"], ["maps"])], {"maps": ["n", 3, 32, 32]}
    )
    encoder = load_encoder(f"onnx/{path}", device="cpu")
    assert encoder.pooling == "avg"
    np.testing.assert_allclose(encoder.embed(np.full((1, 32, 32, 3), 255, np.uint8))[0], (1 - np.array(
        encoder.spec.mean)) / np.array(encoder.spec.std), rtol=1e-5)  # fmt: skip


def _two_vectors(path: Path) -> Path:
    from onnx import helper

    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["plain"]),
        helper.make_node("Neg", ["plain"], ["negated"]),
    ]
    return _write(path, nodes, {"plain": ["n", 3], "negated": ["n", 3]})


def test_one_of_several_outputs_must_be_named(tmp_path: Path) -> None:
    path = _two_vectors(tmp_path / "two.onnx")
    with pytest.raises(WeightsError, match=r"got plain \(n, 3\), negated \(n, 3\). Name the one to take"):
        get_record(f"onnx/{path}")
    (tmp_path / "two.onnx.json").write_text('{"output": "negated", "mean": [0, 0, 0], "std": [1, 1, 1]}')
    vectors = load_encoder(f"onnx/{path}", device="cpu").embed(np.full((1, 32, 32, 3), 255, np.uint8))
    np.testing.assert_allclose(vectors, [[-1, -1, -1]], rtol=1e-6)


def test_digest_is_that_of_the_file_and_of_tensors_beside_it(tmp_path: Path) -> None:
    path = _channel_means(tmp_path / "means.onnx")
    whole = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_encoder(f"onnx/{path}", device="cpu").weights_sha256 == whole
    assert external_files(path) == ()
    from onnx import TensorProto, helper, numpy_helper

    gain = numpy_helper.from_array(np.full((1, 3, 1, 1), 2, np.float32), "gain")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 32, 32])
    result = helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["n", 3, 32, 32])
    graph = helper.make_graph([helper.make_node("Mul", ["image", "gain"], ["maps"])], "g", [image], [result], [gain])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    large = tmp_path / "large.onnx"
    onnx.save(model, large, save_as_external_data=True, location="large.bin", size_threshold=0)
    assert external_files(large) == (tmp_path / "large.bin",)
    before = file_sha256_with_external(large)
    (tmp_path / "large.bin").write_bytes(np.full(3, 3, np.float32).tobytes())
    assert file_sha256_with_external(large) != before
    (tmp_path / "large.bin").unlink()
    with pytest.raises(WeightsError, match=r"large\.bin"):
        file_sha256_with_external(large)


def test_missing_broken_and_unfitting_files_are_told_apart(tmp_path: Path) -> None:
    from onnx import helper

    with pytest.raises(WeightsError, match=r"there is no file .*absent\.onnx\. After onnx/ comes its path"):
        get_record(f"onnx/{tmp_path / 'absent.onnx'}")
    (tmp_path / "broken.onnx").write_bytes(b"not a graph at all")
    with pytest.raises(WeightsError, match="is not an ONNX file that onnxruntime"):
        get_record(f"onnx/{tmp_path / 'broken.onnx'}")
    last = _write(tmp_path / "last.onnx", [helper.make_node("Flatten", ["image"], ["vector"])],
                  {"vector": ["n", 3072]}, shape=("n", 32, 32, 3))  # fmt: skip
    with pytest.raises(WeightsError, match="Export the network with channels first"):
        get_record(f"onnx/{last}")
    table = _write(tmp_path / "table.onnx", [helper.make_node("Identity", ["image"], ["vector"])],
                   {"vector": ["n", 8]}, shape=("n", 8))  # fmt: skip
    with pytest.raises(WeightsError, match="expected one float input"):
        get_record(f"onnx/{table}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"maen": [0, 0, 0]}', "maen"),
        ('{"mean": [0, 0]}', "mean"),
        ('{"interpolation": "nearest"}', "interpolation"),
        ("[1]", "is not a JSON object|valid dictionary"),
        ("{", "is not a JSON object"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = _channel_means(tmp_path / "means.onnx")
    (tmp_path / "means.onnx.json").write_text(content)
    with pytest.raises(WeightsError, match=message):
        get_record(f"onnx/{path}")


def test_other_weights_random_ones_and_maps_are_refused(tmp_path: Path) -> None:
    path = _channel_means(tmp_path / "means.onnx")
    with pytest.raises(EncoderError, match="leave --weights out"):
        load_encoder(f"onnx/{path}", weights=path)
    with pytest.raises(EncoderError, match="leave --random-weights out"):
        load_encoder(f"onnx/{path}", random_weights=0)
    with pytest.raises(EncoderError, match="gives vectors alone"):
        load_encoder(f"onnx/{path}", device="cpu").feature_maps(_images(1, 32), [0])


def test_another_runtime_is_refused_in_words(tmp_path: Path) -> None:
    path = _channel_means(tmp_path / "means.onnx")
    with pytest.raises(EncoderError, match="run by onnxruntime as it is"):
        load_encoder(f"onnx/{path}", device="cpu", runtime="onnxruntime")


def test_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    path = _channel_means(tmp_path / "means.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EncoderError, match=r"pip install 'wsi_dino\[onnx\]'"):
        get_record(f"onnx/{path}")


def test_name_makes_a_folder_name_that_stays_inside() -> None:
    for name in ("onnx/model.onnx", "onnx/../models/a b.onnx", "onnx//home/user/model.onnx"):
        folder = safe_name(name)
        assert "/" not in folder
        assert Path("features", folder).parent == Path("features")
    with pytest.raises(UnknownEncoderError):
        get_record("onnxx/model.onnx")
