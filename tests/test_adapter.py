"""LoRA adapters: put in, learnt, saved, merged, and refused where they do not belong."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsi_dino.encoders.adapt import AdaptedNetwork, AdaptSpec, Bag, Material, adapt
from wsi_dino.encoders.adapter import Adapter, AdapterRecord, AdapterSpec, TrainedOn, read_adapter, save_adapter
from wsi_dino.encoders.backbone import Backbone
from wsi_dino.encoders.encoder import Encoder
from wsi_dino.encoders.loading import load_backbone, load_encoder
from wsi_dino.encoders.lora import adapter_parameters, adapter_tensors, add_adapter, lora_modules, merge_adapter
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.registry import family_of, get_record, records
from wsi_dino.encoders.torchvision_guard import ensure_torchvision
from wsi_dino.errors import ConfigError, EncoderError, WeightsError

if importlib.util.find_spec("peft") is None:
    pytest.skip("peft, the extra `lora`, is not installed", allow_module_level=True)
ensure_torchvision()  # for tests that import peft themselves

TINY = "timm/test_vit.r160_in1k"
SIDE_PX = 64
# A plain ViT; DINOv3's rotary attention without biases; the same with biases that its attention adds by itself.
NETWORKS = (TINY, "dinov3-s", "timm/vit_small_patch16_dinov3_qkvb")
BOTH = AdapterSpec(rank=4, alpha=8, dropout=0.0, targets=("attention", "mlp"))


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)


def backbone_of(name: str, seed: int = 0) -> tuple[EncoderSpec, Backbone]:
    record = get_record(name)
    return record, load_backbone(record, random_weights=seed).backbone


def save_random_adapter(
    folder: Path, network: tuple[EncoderSpec, Backbone] | None = None, spec: AdapterSpec = BOTH, **told: object
) -> Adapter:
    """Save an adapter for a network (the tiny one) whose values are drawn, so that it changes what is computed."""
    record, backbone = network or backbone_of(TINY)
    modules = add_adapter(backbone, record, spec)
    torch.manual_seed(1)
    for value in adapter_parameters(backbone).values():
        nn.init.normal_(value, std=0.05)
    described = AdapterRecord.of(
        record, name="drawn", base_weights_sha256="random:0", pooling=record.pooling, input_px=SIDE_PX, spec=spec,
        modules=modules, trained_on=TrainedOn(target="ER", **told),
    )  # fmt: skip
    return save_adapter(folder, described, adapter_tensors(backbone))


# --- merged and unmerged ------------------------------------------------------------------------


def _drawn(name: str) -> tuple[EncoderSpec, Backbone]:
    """Return a shallow network whose layer scales and biases are such that every layer matters."""
    record = get_record(name)
    record = record.model_copy(update={"architecture_options": {**record.architecture_options, "depth": 2}})
    backbone = load_backbone(record, random_weights=0).backbone
    torch.manual_seed(2)
    for key, value in backbone.named_parameters():
        if "gamma" in key or key.endswith("bias"):
            nn.init.normal_(value, mean=float("gamma" in key), std=0.2)
    return record, backbone


@pytest.mark.parametrize("name", NETWORKS)
def test_merged_encoder_equals_the_unmerged_network_that_peft_loads(tmp_path: Path, name: str) -> None:
    import peft

    record, unmerged = _drawn(name)
    adapter = save_random_adapter(tmp_path, (record, unmerged))
    images = noise(3)

    def encoder(with_adapter: bool) -> Encoder:
        _, backbone = _drawn(name)
        if with_adapter:
            merge_adapter(backbone, adapter)
        settings = {"weights_sha256": "drawn", "weights_source": "file", "workers": 1}
        return Encoder(
            record, backbone, pooling=record.pooling, input_px=SIDE_PX, device="cpu", precision="fp32", **settings
        )

    _, backbone = _drawn(name)
    for module in backbone.modules():
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = True
    network = AdaptedNetwork(backbone, record, record.pooling, SIDE_PX, "cpu")
    peft.PeftModel.from_pretrained(backbone, str(tmp_path)).eval()
    with torch.no_grad():
        expected = network.vectors(images).numpy()
    merged, plain = encoder(True).embed(images), encoder(False).embed(images)
    np.testing.assert_allclose(merged, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    assert np.abs(merged - plain).max() > 0.05 * np.abs(expected).max()


def test_an_untrained_adapter_changes_nothing() -> None:
    record, backbone = backbone_of(TINY)
    network = AdaptedNetwork(backbone, record, record.pooling, SIDE_PX, "cpu")
    with torch.no_grad():
        before = network.vectors(noise(2))
        add_adapter(backbone, record, BOTH)
        assert torch.equal(network.vectors(noise(2)), before)


def test_merging_needs_no_peft_and_adding_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_random_adapter(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    encoder = load_encoder(TINY, random_weights=0, adapter=tmp_path, device="cpu", workers=1)
    assert encoder.embed(noise(1)).shape == (1, 64)
    record, backbone = backbone_of(TINY)
    with pytest.raises(EncoderError, match=r"wsi_dino\[lora\]"):
        add_adapter(backbone, record, BOTH)


# --- where adapters go --------------------------------------------------------------------------

_VITS = [record for record in records() if record.patch_size is not None and record.dimensions == 2]


@pytest.mark.parametrize("record", _VITS, ids=lambda record: record.name)
def test_every_vit_of_the_registry_has_attention_to_adapt(record: EncoderSpec) -> None:
    with torch.device("meta"):
        backbone = family_of(record).build(record)
    names = lora_modules(backbone, record, ("attention",))
    n_blocks = len({name.split(".attn.")[0].split(".attention.")[0] for name in names})
    assert n_blocks >= max(record.feature_layers) + 1
    assert not any("pool" in name or "mlp" in name for name in names)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "timm/test_convnext.r160_in1k"])
def test_convolutional_encoders_are_refused_with_the_reason(name: str) -> None:
    record, backbone = backbone_of(name)
    with pytest.raises(EncoderError, match=r"no attention layer.*convolutional"):
        add_adapter(backbone, record, AdapterSpec())


class OfTorch(Backbone):
    """A block of torch's own fused attention, as open_clip's ViTs have, and a pooler that is no block."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 16, 16)
        self.attn = nn.MultiheadAttention(32, 4, batch_first=batch_first)
        self.pooler = nn.ModuleDict({"attn": nn.MultiheadAttention(32, 4, batch_first=batch_first)})

    def vectors(self, pixels: Tensor, pooling: str) -> Tensor:
        tokens = self.embed(pixels).flatten(2).transpose(1, 2)
        tokens = tokens if self.attn.batch_first else tokens.transpose(0, 1)
        for attention in (self.attn, self.pooler["attn"]):
            tokens = tokens + attention(tokens, tokens, tokens, need_weights=False)[0]
        return tokens.mean(1 if self.attn.batch_first else 0)


@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_fused_attention_is_split_into_the_same_function(tmp_path: Path, batch_first: bool) -> None:
    record = get_record(TINY)
    torch.manual_seed(0)
    network = OfTorch(batch_first).eval().requires_grad_(False)
    pixels = torch.randn(2, 3, SIDE_PX, SIDE_PX)
    before = network.vectors(pixels, "mean")
    assert add_adapter(network, record, AdapterSpec()) == ("attn.qkv", "attn.proj")
    torch.testing.assert_close(network.vectors(pixels, "mean"), before, rtol=1e-5, atol=1e-6)
    network.vectors(pixels, "mean").sum().backward()
    assert all(value.grad is not None for value in adapter_parameters(network).values())


# --- learning -----------------------------------------------------------------------------------


class Readout(nn.Module):
    """A head that cannot learn: what the loss falls by is the adapter's doing."""

    def forward(self, vectors: Tensor) -> Tensor:
        half = vectors.shape[1] // 2
        return torch.stack([vectors[:, :half].mean(1), vectors[:, half:].mean(1)], 1) * 4


def striped(n: int, seed: int) -> Bag:
    """Return images of which those of class 1 have stripes, as many as of class 0."""
    images, labels = noise(n, seed), np.arange(n) % 2
    images[labels == 1, :, ::2] //= 2
    return Bag(images, torch.from_numpy(labels))


def _learn(spec: AdaptSpec, backbone: Backbone, record: EncoderSpec, head: nn.Module | None = None) -> object:
    def training(epoch: int) -> Iterator[Bag]:
        return (striped(8, 10 * epoch + step) for step in range(4))

    return adapt(
        backbone, record, head or Readout(), nn.functional.cross_entropy,
        Material(training, lambda: iter([striped(16, 999)])), spec, pooling=record.pooling, input_px=SIDE_PX,
    )  # fmt: skip


_QUICK = AdaptSpec(adapter=AdapterSpec(dropout=0.1), epochs=6, learning_rate=1e-2, batch_bags=1, precision="fp32")


def test_lora_learns_what_frozen_features_do_not_tell() -> None:
    record, backbone = backbone_of(TINY)
    network = AdaptedNetwork(backbone, record, record.pooling, SIDE_PX, "cpu")
    tested = striped(64, 12345)
    with torch.no_grad():
        before = (Readout()(network.vectors(tested.images)).argmax(1) == tested.label).double().mean()
    adapted = _learn(_QUICK, backbone, record)
    network.eval()
    with torch.no_grad():
        after = (Readout()(network.vectors(tested.images)).argmax(1) == tested.label).double().mean()
    assert before < 0.75
    assert after > 0.95
    assert adapted.history[-1]["train_loss"] < adapted.history[0]["train_loss"] / 4


def test_only_the_adapter_and_the_head_change() -> None:
    record, backbone = backbone_of(TINY)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    head = nn.Linear(64, 2)
    weight = head.weight.detach().clone()
    _learn(_QUICK.model_copy(update={"epochs": 2}), backbone, record, head)
    after = {name.replace(".base_layer.", "."): value for name, value in backbone.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    learnt = adapter_parameters(backbone)
    assert {name for name, value in backbone.named_parameters() if value.requires_grad} == set(learnt)
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in learnt.values())
    assert not torch.equal(head.weight, weight)


def test_the_same_request_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    def learnt(folder: str, seed: int) -> bytes:
        record, backbone = backbone_of(TINY)
        spec = _QUICK.model_copy(update={"epochs": 2, "seed": seed})
        adapted = _learn(spec, backbone, record)
        described = AdapterRecord.of(
            record, name="a", base_weights_sha256="random:0", pooling="cls", input_px=SIDE_PX, spec=spec.adapter,
            modules=adapted.modules,
        )  # fmt: skip
        save_adapter(tmp_path / folder, described, adapted.tensors)
        return (tmp_path / folder / "adapter_model.safetensors").read_bytes()

    first = learnt("first", 0)
    assert learnt("again", 0) == first
    assert learnt("other", 1) != first


def test_a_bag_in_parts_has_the_gradient_of_the_whole() -> None:
    gradients = []
    for at_once in (32, 3):
        record, backbone = backbone_of(TINY)
        add_adapter(backbone, record, BOTH)
        for value in adapter_parameters(backbone).values():
            nn.init.constant_(value, 0.01)
        network = AdaptedNetwork(backbone, record, "mean", SIDE_PX, "cpu", images_at_once=at_once)
        network.train()
        network.vectors(noise(8)).square().mean().backward()
        gradients.append(torch.cat([value.grad.flatten() for value in adapter_parameters(backbone).values()]))
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_the_networks_own_layers_never_are_in_training_mode() -> None:
    record, backbone = backbone_of(TINY)
    add_adapter(backbone, record, AdapterSpec(dropout=0.5))
    network = AdaptedNetwork(backbone, record, record.pooling, SIDE_PX, "cpu")
    network.train()
    training = {name for name, module in backbone.named_modules() if module.training}
    assert training
    assert all("lora_dropout" in name for name in training)


def test_a_loss_that_is_not_finite_or_no_image_is_said() -> None:
    record, backbone = backbone_of(TINY)
    with pytest.raises(ConfigError, match="too high"):
        _learn(_QUICK.model_copy(update={"epochs": 2, "learning_rate": 1e30}), backbone, record)
    record, backbone = backbone_of(TINY)
    with pytest.raises(ConfigError, match="no image to learn from"):
        adapt(
            backbone, record, Readout(), nn.functional.cross_entropy, Material(lambda epoch: [], list), _QUICK,
            pooling="cls", input_px=SIDE_PX,
        )  # fmt: skip


# --- on disk ------------------------------------------------------------------------------------


def test_a_saved_adapter_comes_back_and_is_an_encoder_of_its_own(tmp_path: Path) -> None:
    saved = save_random_adapter(tmp_path, learnt_from=("aa", "bb"), fold=2)
    read = read_adapter(tmp_path)
    assert (read.record, read.sha256) == (saved.record, saved.sha256)
    assert read.has_learnt_from("aa")
    assert not read.has_learnt_from("cc")
    encoder = load_encoder(TINY, random_weights=0, adapter=tmp_path, device="cpu", workers=1)
    plain = load_encoder(TINY, random_weights=0, device="cpu", workers=1)
    assert encoder.input_px == SIDE_PX
    assert encoder.identity()["encoder"] == encoder.spec.name == f"{TINY}+drawn"
    assert encoder.identity()["adapter"] == saved.sha256
    assert plain.identity()["adapter"] is None
    assert encoder.identity()["weights_sha256"] == plain.identity()["weights_sha256"] == "random:0"
    assert "licence goes with it" in encoder.spec.obligations[-1]
    called = load_encoder(TINY, random_weights=0, adapter=tmp_path, called="mine", device="cpu", workers=1)
    assert called.spec.name == "mine"


def test_another_encoder_or_other_weights_are_refused_and_named(tmp_path: Path) -> None:
    save_random_adapter(tmp_path)
    with pytest.raises(WeightsError, match=rf"on the encoder {TINY}, not on dinov3-s"):
        load_encoder("dinov3-s", random_weights=0, adapter=tmp_path, device="cpu")
    with pytest.raises(WeightsError, match=r"SHA-256 random:0, those found have random:1"):
        load_encoder(TINY, random_weights=1, adapter=tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("truncate", "truncated, corrupt or of another adapter"),
        ("flip", "truncated, corrupt or of another adapter"),
        ("no weights", "adapter_model.safetensors is missing"),
        ("no record", "holds no adapter.json"),
        ("half a record", "unreadable"),
        ("changed", "does not say what stands in"),
        ("unknown key", "of another version or was changed"),
        ("no folder", "no such folder"),
    ],
)
def test_harm_to_any_file_is_refused(tmp_path: Path, harm: str, words: str) -> None:
    folder = tmp_path / "adapter"
    save_random_adapter(folder)
    weights, record = folder / "adapter_model.safetensors", folder / "adapter.json"
    content, stated = weights.read_bytes(), json.loads(record.read_text())
    if harm == "truncate":
        weights.write_bytes(content[:-100])
    elif harm == "flip":
        weights.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif harm == "no weights":
        weights.unlink()
    elif harm == "no record":
        record.unlink()
    elif harm == "half a record":
        record.write_text(record.read_text()[:100])
    elif harm == "changed":
        record.write_text(json.dumps(stated | {"base_weights_sha256": "random:1"}))
    elif harm == "unknown key":
        record.write_text(json.dumps(stated | {"colour": "pink"}))
    else:
        folder = tmp_path / "absent"
    with pytest.raises((WeightsError, ConfigError), match=words):
        read_adapter(folder)


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    adapter = save_random_adapter(tmp_path)
    tensors = adapter.tensors()
    save_adapter(tmp_path, adapter.record, {name: value for name, value in tensors.items() if "blocks.0" not in name})
    with pytest.raises(WeightsError, match=r"blocks\.0.*missing or do not fit"):
        load_encoder(TINY, random_weights=0, adapter=tmp_path, device="cpu")
    save_adapter(tmp_path, adapter.record, tensors | {"stray": torch.zeros(1)})
    with pytest.raises(WeightsError, match="unknown tensor stray"):
        load_encoder(TINY, random_weights=0, adapter=tmp_path, device="cpu")


def test_reading_a_record_needs_no_torch(tmp_path: Path) -> None:
    save_random_adapter(tmp_path)
    code = (
        "import sys; from pathlib import Path; from wsi_dino.encoders.adapter import read_adapter; "
        f"read_adapter(Path({str(tmp_path)!r})); print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_the_python_of_the_docs_page_works(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs/adapters.md").read_text(encoding="utf-8")
    block = page.split("```python\n")[1].split("```")[0]
    for shown, here in (("dinov3-s", TINY), ("load_backbone(record)", "load_backbone(record, random_weights=0)"),
                        ("AdaptSpec()", "AdaptSpec(epochs=1)"), ("input_px=224", f"input_px={SIDE_PX}")):  # fmt: skip
        assert shown in block
        block = block.replace(shown, here)
    bag = striped(4, 0)
    exec(block, {"training": (bag.images, bag.label), "validation": (bag.images, bag.label), "folder": tmp_path})
    assert read_adapter(tmp_path).record.name == "mine"
