"""CONCH v1.5: names of its checkpoint, and its parts against the published formulas written out."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from wsi_dino.encoders.checkpoint import load_strictly
from wsi_dino.encoders.families import conch_v15
from wsi_dino.encoders.offset_positions import resampled_positions
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.registry import get_record
from wsi_dino.errors import WeightsError

# Names and shapes of the published checkpoint beside its trunk.
_BESIDE_TRUNK = {
    "attn_pool_contrast.query": (1, 768),
    "attn_pool_contrast.ln_k.weight": (1024,),
    "attn_pool_contrast.ln_k.bias": (1024,),
    "attn_pool_contrast.ln_q.weight": (768,),
    "attn_pool_contrast.ln_q.bias": (768,),
    "attn_pool_contrast.to_q.weight": (768, 768),
    "attn_pool_contrast.to_kv.weight": (1536, 1024),
    "attn_pool_contrast.to_out.weight": (768, 768),
    "ln_contrast.weight": (768,),
    "ln_contrast.bias": (768,),
}


def _shallow() -> EncoderSpec:
    """Return the record with two of the 24 blocks: every kind of layer is there, at a twelfth of the cost."""
    record = get_record("conch-v1.5")
    return record.model_copy(update={"architecture_options": {**record.architecture_options, "depth": 2}})


@lru_cache(maxsize=1)
def _checkpoint() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    trunk = conch_v15.build(_shallow()).model.state_dict()  # type: ignore[union-attr]
    shapes = {f"trunk.{key}": tuple(tensor.shape) for key, tensor in trunk.items()} | _BESIDE_TRUNK
    return {key: 0.05 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def _loaded() -> Any:
    network = conch_v15.build(_shallow())
    load_strictly(network, conch_v15.convert(dict(_checkpoint()), _shallow()), "conch-v1.5", Path("a.bin"))
    return network.eval()


def test_every_name_of_the_checkpoint_finds_its_place() -> None:
    converted = conch_v15.convert(dict(_checkpoint()), _shallow())
    assert set(converted) == set(conch_v15.build(_shallow()).state_dict())
    keys, values = _checkpoint()["attn_pool_contrast.to_kv.weight"].chunk(2)
    assert torch.equal(converted["pooler.attn.k_proj_weight"], keys)
    assert torch.equal(converted["pooler.attn.v_proj_weight"], values)


def test_position_table_of_the_checkpoint_is_that_of_224_px() -> None:
    assert tuple(_checkpoint()["trunk.pos_embed"].shape) == (1, 197, 1024)
    assert get_record("conch-v1.5").input_px == 448


def test_a_checkpoint_without_the_pooler_names_what_is_missing() -> None:
    state = {key: tensor for key, tensor in _checkpoint().items() if "to_kv" not in key}
    with pytest.raises(WeightsError, match=r"Missing in the file \(2\): pooler\.attn\.k_proj_weight"):
        load_strictly(conch_v15.build(_shallow()), conch_v15.convert(state, _shallow()), "conch-v1.5", Path("a.bin"))


def _pooled_by_hand(tokens: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """Write the attention of one query out: eight heads of 96, no biases, then the layer norm."""
    part = {key.removeprefix("attn_pool_contrast."): value for key, value in state.items()}
    normed = functional.layer_norm(tokens, (1024,), part["ln_k.weight"], part["ln_k.bias"])
    query = functional.layer_norm(part["query"], (768,), part["ln_q.weight"], part["ln_q.bias"])
    heads = (query @ part["to_q.weight"].T).view(8, 96)
    keys, values = (normed @ part["to_kv.weight"].T).chunk(2, dim=-1)
    keys, values = keys.unflatten(-1, (8, 96)), values.unflatten(-1, (8, 96))
    weights = (torch.einsum("hd,bnhd->bhn", heads, keys) / 96**0.5).softmax(-1)
    mixed = torch.einsum("bhn,bnhd->bhd", weights, values).flatten(1)
    return functional.layer_norm(
        mixed @ part["to_out.weight"].T, (768,), state["ln_contrast.weight"], state["ln_contrast.bias"]
    )


def _trunk_of_fixed_size(state: dict[str, torch.Tensor]) -> Any:
    """Return timm's network for 448 px alone, its table resampled beforehand, one position at a time."""
    from wsi_dino.encoders.torchvision_guard import ensure_torchvision

    ensure_torchvision()
    import timm

    network = timm.create_model("vit_large_patch16_224", img_size=448, depth=2, init_values=1e-6, num_classes=0)
    trunk = {key.removeprefix("trunk."): value for key, value in state.items() if key.startswith("trunk.")}
    trunk["pos_embed"] = _table_by_hand(trunk["pos_embed"], side=28)
    network.load_state_dict(trunk)
    return network.eval()


def _table_by_hand(table: torch.Tensor, side: int) -> torch.Tensor:
    """Resample bicubically at the places that a scale of (side + 0.1) / 14 asks for."""
    places = (torch.arange(side, dtype=torch.float64) + 0.5) * 14 / (side + 0.1) - 0.5
    weights = torch.zeros(side, 14, dtype=torch.float64)
    for row, place in enumerate(places):
        for neighbour in range(int(place.floor()) - 1, int(place.floor()) + 3):
            weights[row, min(max(neighbour, 0), 13)] += _cubic(abs(float(place) - neighbour))
    grid = table[0, 1:].double().view(14, 14, -1)
    resampled = torch.einsum("ya,xb,abd->yxd", weights, weights, grid).flatten(0, 1)
    return torch.cat([table[:, :1], resampled[None].float()], dim=1)


def _cubic(distance: float, sharpness: float = -0.75) -> float:
    """Return Keys' cubic convolution kernel, with the constant that torch uses."""
    if distance <= 1:
        return (sharpness + 2) * distance**3 - (sharpness + 3) * distance**2 + 1
    return sharpness * (distance**3 - 5 * distance**2 + 8 * distance - 4)


def test_vectors_and_maps_equal_the_formulas_written_out() -> None:
    state = dict(_checkpoint())
    pixels = torch.randn(1, 3, 448, 448, generator=torch.Generator().manual_seed(1))
    network = _loaded()
    reference = _trunk_of_fixed_size(state)
    with torch.inference_mode():
        tokens = reference.forward_features(pixels)
        expected = _pooled_by_hand(tokens, state)
        vectors = network.vectors(pixels, "attention")
        (last_map,) = network.maps(pixels, [1])
        (expected_map,) = reference.forward_intermediates(pixels, indices=[1], intermediates_only=True)
    torch.testing.assert_close(vectors, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    torch.testing.assert_close(last_map, expected_map, atol=1e-4 * float(expected_map.abs().max()), rtol=0)


def test_table_of_its_own_size_is_left_alone() -> None:
    table = torch.randn(1, 197, 8)
    assert resampled_positions(table, 14, 14) is table
