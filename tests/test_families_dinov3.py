"""DINOv3 against the transformers library, from checkpoints under every name they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from random_checkpoint import assert_close, enliven, loaded, noise_images, saved
from torch import Tensor

from wsi_dino.encoders.loading import load_encoder
from wsi_dino.encoders.registry import family_of, get_record
from wsi_dino.errors import WeightsError

_SIZES = {
    "dinov3-s": (384, 6, 12, False), "dinov3-s-plus": (384, 6, 12, True), "dinov3-b": (768, 12, 12, False),
    "dinov3-l": (1024, 16, 24, False), "dinov3-h-plus": (1280, 20, 32, True), "dinov3-7b": (4096, 32, 40, True),
}  # fmt: skip


def _reference(name: str, depth: int, *, biases: bool = False) -> Any:
    transformers = pytest.importorskip("transformers", minversion="4.56", reason="DINOv3 is in transformers >= 4.56")
    dim, n_heads, _, is_gated = _SIZES[name]
    config = transformers.DINOv3ViTConfig(
        hidden_size=dim, intermediate_size=dim * 4, num_hidden_layers=depth, num_attention_heads=n_heads,
        num_register_tokens=4, use_gated_mlp=is_gated, hidden_act="silu" if is_gated else "gelu",
    )  # fmt: skip
    reference = enliven(transformers.DINOv3ViTModel(config))
    if not biases:
        for key, tensor in reference.state_dict().items():
            if key.endswith(("q_proj.bias", "v_proj.bias")):
                tensor.zero_()
    return reference


def _tokens(reference: Any, images: Tensor) -> Tensor:
    with torch.inference_mode():
        tokens: Tensor = reference(images).last_hidden_state
    return tokens


def _assert_same(backbone: Any, reference: Any, images: Tensor) -> None:
    expected = _tokens(reference, images)
    with torch.inference_mode():
        ours = {pooling: backbone.vectors(images, pooling) for pooling in ("cls", "mean")}
        assert_close(backbone.tokens(images)[:, 5:], expected[:, 5:])
    assert_close(ours["cls"], expected[:, 0])
    assert_close(ours["mean"], expected[:, 5:].mean(1))


@pytest.mark.parametrize(
    ("name", "depth", "sides_px"),
    [
        pytest.param("dinov3-s", 12, (224, 256, 512), marks=pytest.mark.slow),
        ("dinov3-s-plus", 2, (224,)),
        ("dinov3-b", 2, (224, 256, 512)),
        ("dinov3-l", 2, (224, 256, 512)),
        pytest.param("dinov3-l", 24, (224,), marks=pytest.mark.slow),
    ],
)
def test_equals_transformers_on_its_own_file(name: str, depth: int, sides_px: tuple[int, ...], tmp_path: Path) -> None:
    """CLS and every patch token; B has the same number of blocks as S, so that the full S and L stand for it."""
    reference = _reference(name, depth)
    reference.save_pretrained(tmp_path)
    backbone = loaded(get_record(name), tmp_path / "model.safetensors", depth=depth)
    for side_px in sides_px:
        _assert_same(backbone, reference, noise_images(1, side_px))


def _as_meta(state: dict[str, Tensor], biases: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name timm's tensors as Meta's checkpoints do, with what only those hold."""
    words = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma", "reg_token": "storage_tokens",
             "fc1_g.": "w1.", "fc1_x.": "w2."}  # fmt: skip
    is_gated = any("fc1_g" in key for key in state)
    result = {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}
    for key, tensor in state.items():
        new = key.replace("fc2.", "w3.") if is_gated else key
        for old, word in words.items():
            new = new.replace(old, word)
        result[new] = tensor
        if key.endswith("qkv.weight"):
            block = key.removesuffix(".attn.qkv.weight")
            zero = torch.zeros(len(tensor) // 3)
            query, value = biases.get(f"{block}.q", zero), biases.get(f"{block}.v", zero)
            # Key biases are masked by NaN in Meta's files.
            joined = torch.cat([query, torch.full_like(zero, torch.nan), value])
            result |= {f"{block}.attn.qkv.bias": joined, f"{block}.attn.qkv.bias_mask": joined}
    return result


@pytest.mark.parametrize("name", ["dinov3-s", "dinov3-s-plus"])
def test_metas_timms_and_transformers_files_give_the_same_vectors(name: str, tmp_path: Path) -> None:
    record = get_record(name)
    reference = _reference(name, 2)
    reference.save_pretrained(tmp_path)
    first = loaded(record, tmp_path / "model.safetensors", depth=2)
    of_timm = dict(first.model.state_dict())
    images = noise_images(2, 64)
    for file, state in (("timm.safetensors", of_timm), ("meta.pth", _as_meta(of_timm, {}))):
        backbone = loaded(record, saved(state, tmp_path / file), depth=2)
        with torch.inference_mode():
            assert torch.equal(backbone.vectors(images, "cls"), first.vectors(images, "cls"))
    _assert_same(first, reference, images)


@pytest.mark.parametrize("naming", ["transformers", "meta", "timm"])
def test_biases_that_are_not_zero_are_kept(naming: str, tmp_path: Path) -> None:
    """They are zero in every published file; a trained-on one may differ, and takes timm's form with biases."""
    reference = _reference("dinov3-s", 2, biases=True)
    reference.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    record = get_record("dinov3-s")
    if naming != "transformers":
        state = dict(loaded(record, path, depth=2).model.state_dict())
        biases = {key.replace(".attn.", ".").removesuffix("_bias"): value for key, value in state.items()
                  if key.endswith(("q_bias", "v_bias"))}  # fmt: skip
        assert len(biases) == 4
        plain = {key: tensor for key, tensor in state.items() if not key.endswith(("q_bias", "v_bias"))}
        path = saved(state if naming == "timm" else _as_meta(plain, biases), tmp_path / f"{naming}.pth")
    backbone = loaded(record, path, depth=2)
    assert backbone.model.blocks[0].attn.q_bias is not None
    _assert_same(backbone, reference, noise_images(2, 64))


def test_prepared_encoder_keeps_biases(tmp_path: Path) -> None:
    """What makes a network fast on a CPU must not lose them: through `load_encoder`, at full depth."""
    import numpy as np

    reference = _reference("dinov3-s", 12, biases=True)
    reference.save_pretrained(tmp_path)
    record = get_record("dinov3-s")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    ours = load_encoder("dinov3-s", input_px=64, weights=tmp_path / "model.safetensors", device="cpu", precision="fp32")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (record.mean, record.std))
    expected = _tokens(reference, (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std)[:, 5:].mean(1)
    assert_close(torch.from_numpy(ours.embed(images)), expected)


def test_the_seven_billions_have_no_form_with_biases() -> None:
    record = get_record("dinov3-7b")
    state = {"blocks.0.attn.qkv.bias": torch.ones(6)}
    with pytest.raises(WeightsError, match="timm has no form of this network"):
        family_of(record).fitted(record, state)
    assert family_of(record).fitted(record, {"blocks.0.attn.qkv.bias": torch.zeros(6)}) == record


@pytest.mark.parametrize(
    ("renamed", "told"),
    [
        ({"norm.weight": "last.weight"}, ["Missing in the file (1): model.norm.weight", "model.last.weight"]),
        (
            {"layer.1.attention.k_proj.weight": "layer.1.attention.key.weight"},
            ["Missing in the file (1): model.blocks.1.attn.qkv.weight", "blocks.1.attention.key.weight"],
        ),
    ],
)  # fmt: skip
def test_a_wrong_name_is_told(renamed: dict[str, str], told: list[str], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    _reference("dinov3-s", 2).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    wrong = saved({renamed.get(key, key): tensor for key, tensor in state.items()}, tmp_path / "wrong.safetensors")
    with pytest.raises(WeightsError, match="another architecture") as trouble:
        loaded(get_record("dinov3-s"), wrong, depth=2)
    for part in told:
        assert part in str(trouble.value)
