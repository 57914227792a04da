"""DINOv2, UNI-like networks, Phikon-v2, MAE and MoCo v3 against the transformers library, name by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from random_checkpoint import assert_close, enliven, loaded, noise_images, saved
from safetensors.torch import load_file
from torch import Tensor

from wsi_dino.encoders.registry import get_record
from wsi_dino.errors import WeightsError

_SIZES = {"s": (384, 6), "b": (768, 12), "l": (1024, 16), "g": (1536, 24)}


def _dinov2(letter: str, depth: int, *, n_registers: int | None, patch_size: int = 14, table_px: int = 518) -> Any:
    """Return the library's DINOv2; without registers of the class without them where `n_registers` is None."""
    transformers = pytest.importorskip("transformers", reason="the transformers extra is not installed")
    dim, n_heads = _SIZES[letter]
    shape: dict[str, Any] = {
        "hidden_size": dim, "num_hidden_layers": depth, "num_attention_heads": n_heads, "patch_size": patch_size,
        "image_size": table_px, "use_swiglu_ffn": letter == "g",
    }  # fmt: skip
    if n_registers is None:
        return enliven(transformers.Dinov2Model(transformers.Dinov2Config(**shape)))
    config = transformers.Dinov2WithRegistersConfig(**shape, num_register_tokens=n_registers)
    return enliven(transformers.Dinov2WithRegistersModel(config))


def _assert_same(backbone: Any, reference: Any, sides_px: tuple[int, ...], n_prefix: int = 1) -> None:
    for side_px in sides_px:
        images = noise_images(1, side_px)
        with torch.inference_mode():
            expected = reference(images).last_hidden_state
            assert_close(backbone.vectors(images, "cls"), expected[:, 0])
            assert_close(backbone.vectors(images, "mean"), expected[:, n_prefix:].mean(1))
            assert_close(backbone.tokens(images), expected)


@pytest.mark.parametrize(
    ("name", "depth", "sides_px"),
    [
        ("dinov2-s", 12, (224,)), ("dinov2-s", 1, (518, 616)), ("dinov2-s-reg", 2, (224, 518)),
        ("dinov2-b", 1, (224,)), ("dinov2-b-reg", 1, (266,)), ("dinov2-l", 1, (224,)), ("dinov2-g", 1, (224,)),
    ],
)  # fmt: skip
def test_dinov2_equals_transformers_on_its_own_file(
    name: str, depth: int, sides_px: tuple[int, ...], tmp_path: Path
) -> None:
    """Layer scales, gated layers of the giants, and the position table at 518 px, smaller and larger."""
    registers = 4 if name.endswith("-reg") else None
    reference = _dinov2(name[7], depth, n_registers=registers)
    reference.save_pretrained(tmp_path)
    backbone = loaded(get_record(name), tmp_path / "model.safetensors", depth=depth)
    _assert_same(backbone, reference, sides_px, n_prefix=1 + (registers or 0))


def _dinov2_as_meta(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name the library's tensors as Meta's checkpoints do; written from those names, not from the loader's."""
    result = {"mask_token": state["embeddings.mask_token"]}
    top = {
        "cls_token": "cls_token", "register_tokens": "register_tokens", "position_embeddings": "pos_embed",
        "patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "patch_embeddings.projection.bias": "patch_embed.proj.bias",
    }  # fmt: skip
    result |= {top[key[11:]]: tensor for key, tensor in state.items() if key[:11] == "embeddings." and key[11:] in top}
    result |= {"norm.weight": state["layernorm.weight"], "norm.bias": state["layernorm.bias"]}
    in_block = {
        "attention.output.dense": "attn.proj", "layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma",
        "mlp.weights_in": "mlp.w12", "mlp.weights_out": "mlp.w3",
    }  # fmt: skip
    for key, tensor in state.items():
        if not key.startswith("encoder.layer."):
            continue
        number, rest = key.removeprefix("encoder.layer.").split(".", 1)
        if rest.startswith("attention.attention.query."):
            kind = rest.rpartition(".")[2]
            parts = [state[key.replace("query", word)] for word in ("query", "key", "value")]
            result[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat(parts)
        elif not rest.startswith("attention.attention."):
            for old, new in in_block.items():
                rest = rest.replace(old, new)
            result[f"blocks.{number}.{rest}"] = tensor
    return result


@pytest.mark.parametrize("name", ["dinov2-s", "dinov2-s-reg", "dinov2-g"])
def test_metas_and_timms_files_of_dinov2_give_the_same_vectors(name: str, tmp_path: Path) -> None:
    record = get_record(name)
    reference = _dinov2(name[7], 1, n_registers=4 if name.endswith("-reg") else None)
    reference.save_pretrained(tmp_path)
    library_file = tmp_path / "model.safetensors"
    first = loaded(record, library_file, depth=1)
    of_meta = saved(_dinov2_as_meta(load_file(library_file)), tmp_path / "meta.pth")
    of_timm = saved(first.model.state_dict(), tmp_path / "timm.safetensors")
    images = noise_images(1, 224)
    for path in (of_meta, of_timm):
        backbone = loaded(record, path, depth=1)
        with torch.inference_mode():
            assert torch.equal(backbone.vectors(images, "cls+mean"), first.vectors(images, "cls+mean"))


def test_maps_are_the_tokens_after_their_blocks(tmp_path: Path) -> None:
    reference = _dinov2("s", 3, n_registers=None)
    reference.save_pretrained(tmp_path)
    backbone = loaded(get_record("dinov2-s"), tmp_path / "model.safetensors", depth=3)
    images = noise_images(2, 112)
    with torch.inference_mode():
        expected = reference(images, output_hidden_states=True).hidden_states
        maps = backbone.maps(images, (2, 0))
    for item, layer in zip(maps, (2, 0), strict=True):
        tokens = expected[layer + 1][:, 1:]
        assert_close(item, tokens.transpose(1, 2).reshape(2, 384, 8, 8))


def test_uni_equals_transformers(tmp_path: Path) -> None:
    """UNI is timm's ViT-L/16 with layer scales; at other sizes it smooths its table, as the library's registers do."""
    record = get_record("uni")
    reference = _dinov2("l", 2, n_registers=0, patch_size=16, table_px=224)
    state = _dinov2_as_meta(reference.state_dict())
    used = {key: tensor for key, tensor in state.items() if key not in ("mask_token", "register_tokens")}
    backbone = loaded(record, saved(used, tmp_path / "pytorch_model.bin"), depth=2)
    _assert_same(backbone, reference, (224, 320))


def test_phikon_equals_transformers_on_its_own_file(tmp_path: Path) -> None:
    reference = _dinov2("l", 1, n_registers=None, patch_size=16, table_px=224)
    reference.save_pretrained(tmp_path)
    backbone = loaded(get_record("phikon-v2"), tmp_path / "model.safetensors", depth=1)
    _assert_same(backbone, reference, (224, 320))
    state = load_file(tmp_path / "model.safetensors")
    prefixed = saved({f"dinov2.{key}": tensor for key, tensor in state.items()}, tmp_path / "prefixed.safetensors")
    again = loaded(get_record("phikon-v2"), prefixed, depth=1).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in backbone.state_dict().items())


@pytest.mark.parametrize("naming", ["published", "version 5", "with decoder"])
def test_mae_equals_transformers_under_every_name(naming: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the transformers extra is not installed")
    depth = 2
    # The library's own default, 1e-12, is not what MAE was trained with.
    config = transformers.ViTMAEConfig(
        num_hidden_layers=depth, decoder_num_hidden_layers=1, mask_ratio=0.0, layer_norm_eps=1e-6
    )
    whole = enliven(transformers.ViTMAEForPreTraining(config))
    reference = whole.vit
    state = reference.state_dict()
    if naming != "version 5":
        (whole if naming == "with decoder" else reference).save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
    assert any("attention.attention.query" in key for key in state) == (naming != "version 5")
    backbone = loaded(get_record("mae-b"), saved(state, tmp_path / "mae.safetensors"), depth=depth)
    for side_px in (224, 288):
        images = noise_images(1, side_px)
        unshuffled = torch.arange((side_px // 16) ** 2).float()[None]
        with torch.inference_mode():
            expected = reference(images, noise=unshuffled, interpolate_pos_encoding=True).last_hidden_state
            assert_close(backbone.tokens(images), expected)


def test_metas_mae_loads_without_its_mask_token(tmp_path: Path) -> None:
    import timm

    network = enliven(timm.create_model("vit_large_patch16_224.mae", num_classes=0, depth=1))
    path = tmp_path / "mae_pretrain_vit_large.pth"
    torch.save({"model": {**network.state_dict(), "mask_token": torch.zeros(1, 1, 512)}}, path)
    backbone = loaded(get_record("mae-l"), path, depth=1)
    images = noise_images(1, 224)
    with torch.inference_mode():
        assert_close(backbone.vectors(images, "cls"), network(images), 1e-6)


def test_mocos_trained_encoder_is_taken_from_its_checkpoint(tmp_path: Path) -> None:
    """Names as Meta's ``MoCo_ViT`` under ``DistributedDataParallel`` writes them."""
    import timm

    trained, momentum = (
        enliven(timm.create_model("vit_base_patch16_224", num_classes=0, depth=2), seed) for seed in (0, 1)
    )
    state = {f"module.base_encoder.{key}": tensor for key, tensor in trained.state_dict().items()}
    state |= {f"module.momentum_encoder.{key}": tensor for key, tensor in momentum.state_dict().items()}
    state |= {"module.base_encoder.head.0.weight": torch.ones(4096, 768), "module.predictor.0.weight": torch.ones(2, 2)}
    path = tmp_path / "vit-b-300ep.pth.tar"
    torch.save({"epoch": 300, "arch": "vit_base", "state_dict": state, "optimizer": {"param_groups": []}}, path)
    of_hub = {**trained.state_dict(), "head.weight": torch.ones(1000, 768), "head.bias": torch.ones(1000)}
    images = noise_images(1, 224)
    with torch.inference_mode():
        for file in (path, saved(of_hub, tmp_path / "model.safetensors")):
            assert_close(loaded(get_record("moco-v3"), file, depth=2).vectors(images, "cls"), trained(images), 1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [("dinov2-s", {}), ("phikon-v2", {"patch_size": 16, "table_px": 224})],
)
def test_a_file_with_a_part_missing_is_told(name: str, options: dict[str, int], tmp_path: Path) -> None:
    reference = _dinov2("s" if name == "dinov2-s" else "l", 1, n_registers=None, **options)
    reference.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["encoder.layer.0.attention.attention.key.weight"]
    state["encoder.layer.0.extra.weight"] = torch.ones(2)
    with pytest.raises(WeightsError) as trouble:
        loaded(get_record(name), saved(state, tmp_path / "wrong.safetensors"), depth=1)
    assert "Missing in the file (1): model.blocks.0.attn.qkv.weight" in str(trouble.value)
    assert "Unknown to the encoder (1): model.blocks.0.extra.weight" in str(trouble.value)


@pytest.mark.parametrize("name", ["uni2-h", "virchow2", "h-optimus-0", "gigapath", "kaiko-s8", "lunit-s8"])
def test_published_names_of_timms_networks_pass(name: str, tmp_path: Path) -> None:
    """A file saved from the network as its authors build it loads; options as their model pages state them."""
    import timm
    from timm.layers import SwiGLUPacked

    gated: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU, "init_values": 1e-5}
    architecture, options = {
        "uni2-h": ("vit_giant_patch14_224", {
            **gated, "img_size": 224, "patch_size": 14, "num_heads": 24, "embed_dim": 1536, "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True, "reg_tokens": 8, "dynamic_img_size": True}),
        "virchow2": ("vit_huge_patch14_224", {
            **gated, "img_size": 224, "reg_tokens": 4, "mlp_ratio": 5.3375, "global_pool": "",
            "dynamic_img_size": True}),
        "h-optimus-0": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224, "init_values": 1e-5}),
        "gigapath": ("vit_giant_patch14_dinov2", {
            "img_size": 224, "patch_size": 16, "embed_dim": 1536, "num_heads": 24, "init_values": 1e-5,
            "mlp_ratio": 5.33334}),
        "kaiko-s8": ("vit_small_patch8_224", {"dynamic_img_size": True}),
        "lunit-s8": ("vit_small_patch8_224", {}),
    }[name]  # fmt: skip
    record = get_record(name)
    theirs = enliven(timm.create_model(architecture, num_classes=0, depth=1, **options))
    ours = loaded(record, saved(theirs.state_dict(), tmp_path / record.weights_file), depth=1)
    images = noise_images(1, 224)
    with torch.inference_mode():
        tokens = theirs.forward_features(images)
        assert_close(ours.vectors(images, "cls"), tokens[:, 0], 1e-6)
        assert_close(ours.vectors(images, "mean"), tokens[:, record.n_prefix_tokens :].mean(1), 1e-6)
