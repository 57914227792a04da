"""`wsi-dino weights` as a user runs it: against a hub of the same form on this machine, and without any."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Ran, run_command
from local_hub import ACCEPTED, NOT_ACCEPTED, LocalHub, Repository, environment_of, hub_of_this_process, running_hub
from safetensors.torch import save

from wsi_dino.encoders.loading import load_backbone, load_encoder
from wsi_dino.encoders.registry import get_record, records
from wsi_dino.errors import WeightsError

NAME = "timm/test_vit.r160_in1k"
_RESNET = "timm/test_resnet.r160_in1k"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _content(name: str) -> bytes:
    """Random weights as the hub would hold them."""
    network = load_backbone(get_record(name), random_weights=1).backbone
    return save({key.removeprefix("model."): tensor.contiguous() for key, tensor in network.state_dict().items()})


@pytest.fixture(scope="module")
def content() -> bytes:
    return _content(NAME)


def _publish(hub: LocalHub, name: str, content: bytes, **settings: Any) -> Repository:
    record = get_record(name)
    hub.repositories[record.source] = Repository({record.weights_file: content}, **settings)
    return hub.repositories[record.source]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> Iterator[LocalHub]:
    with hub_of_this_process(tmp_path, monkeypatch) as hub:
        _publish(hub, NAME, content)
        yield hub


def _row(ran: Ran) -> dict[str, Any]:
    (row,) = ran.json["rows"]
    return dict(row)


# --- status -----------------------------------------------------------------------------------------


def test_status_of_all_asks_nobody(tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("status reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_TOKEN", "hf_some")
    ran = run_command(tmp_path, "weights", "status", "--json")
    rows = {row["encoder"]: row for row in ran.json["rows"]}
    assert (ran.code, ran.json["is_token_set"], ran.json["is_offline"]) == (0, True, False)
    assert set(rows) == {record.name for record in records()}
    assert (rows["efficientnet-lite0"]["where"], rows["efficientnet-lite0"]["to_do"]) == ("package", "")
    assert rows["dinov3-s"]["where"] == "hub"
    assert rows["dinov3-s"]["revision"] == get_record("dinov3-s").revision
    for name, row in rows.items():
        record = get_record(name)
        assert row["is_gated"] == record.gated
        assert bool(row["to_do"]) == (row["path"] is None)
        if not record.is_public or record.dimensions == 3:
            assert row["where"] == "none"
    assert hub.asked == []


def test_status_follows_the_order_of_places(tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def where(*options: str) -> str:
        return str(_row(run_command(tmp_path, "weights", "status", NAME, "--json", *options))["where"])

    assert where() == "hub"
    monkeypatch.setenv("WSI_DINO_OFFLINE", "1")
    assert where() == "none"
    monkeypatch.delenv("WSI_DINO_OFFLINE")
    assert run_command(tmp_path, "weights", "fetch", NAME).code == 0
    assert where() == "cache"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / f"{NAME.replace('/', '__')}.safetensors").write_bytes(b"")
    assert where("--weights-dir", "folder") == "file"


def test_status_for_the_eye_says_what_to_do(tmp_path: Path, hub: LocalHub) -> None:
    ran = run_command(tmp_path, "weights", "status", "uni", "efficientnet-lite0")
    assert "accept the terms at https://huggingface.co/MahmoodLab/" in ran.stdout
    assert "no access token is set" in ran.stderr
    assert len(ran.stdout.splitlines()) == 4


@pytest.mark.parametrize(("token", "answer"), [("", "no-token"), (NOT_ACCEPTED, "terms"), (ACCEPTED, "open: 3.0 MB")])
def test_status_online_asks_the_hub_and_fetches_nothing(
    tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch, token: str, answer: str
) -> None:
    record = get_record("uni")
    _publish(hub, "uni", b"x" * 3_000_000, gated=True, commit=record.revision or "c" * 40)
    monkeypatch.setenv("HF_TOKEN", token)
    row = _row(run_command(tmp_path, "weights", "status", "uni", "--online", "--json"))
    assert row["hub_says"].startswith(answer)
    assert hub.fetched() == []


# --- fetch ------------------------------------------------------------------------------------------


def test_fetch_brings_checks_and_keeps(tmp_path: Path, hub: LocalHub, content: bytes) -> None:
    ran = run_command(tmp_path, "weights", "fetch", NAME, "--json")
    row = _row(ran)
    assert (ran.code, row["status"], row["revision"]) == (0, "fetched", "c" * 40)
    assert row["sha256"] == hashlib.sha256(content).hexdigest()
    assert row["compared_with"] == ["hub"]
    assert f"Fetching model.safetensors of {get_record(NAME).source}" in ran.stderr
    assert get_record(NAME).licence in ran.stderr
    assert _row(run_command(tmp_path, "weights", "fetch", NAME, "--json"))["status"] == "present"
    assert len(hub.fetched()) == 1


def test_fetch_replaces_a_damaged_file_of_the_cache(tmp_path: Path, hub: LocalHub, content: bytes) -> None:
    path = Path(_row(run_command(tmp_path, "weights", "fetch", NAME, "--json"))["path"])
    path.write_bytes(content[:-1] + b"x")
    ran = run_command(tmp_path, "weights", "fetch", NAME, "--json")
    assert "wrong checksum" in ran.stderr
    assert "Removed from the cache" in ran.stderr
    assert _row(ran)["status"] == "fetched"
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("trouble", "kind", "words"),
    [
        ({"gated": True}, "no-token", "Accept the terms at https://huggingface.co/timm/"),
        ({"files": {}}, "no-file", "has no model.safetensors"),
        ({"content": b"no weights"}, "file", "truncated or corrupt"),
    ],
)
def test_one_failure_is_a_row_and_the_others_go_on(
    tmp_path: Path, hub: LocalHub, trouble: dict[str, Any], kind: str, words: str
) -> None:
    repository = _publish(hub, NAME, trouble.pop("content", b"x"))
    for key, value in trouble.items():
        setattr(repository, key, value)
    ran = run_command(tmp_path, "weights", "fetch", NAME, "efficientnet-lite0", "--json")
    failed, done = ran.json["rows"]
    assert (ran.code, failed["status"], failed["kind"], done["status"]) == (1, "failed", kind, "present")
    assert words in failed["reason"]
    shown = run_command(tmp_path, "weights", "fetch", NAME)
    assert shown.code == 1
    assert words in shown.stderr


def test_weights_of_another_network_are_told_by_their_first_keys(tmp_path: Path, hub: LocalHub) -> None:
    _publish(hub, NAME, _content(_RESNET))
    row = _row(run_command(tmp_path, "weights", "fetch", NAME, "--json"))
    assert row["status"] == "failed"
    assert "another architecture" in row["reason"]
    assert "Missing in the file" in row["reason"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fetch"], "needs the name of an encoder"),
        (["bundle", NAME], "--to FOLDER"),
        (["fetch", NAME, "--to", "x"], "--to FOLDER"),
        (["fetch", NAME, "--online"], "--online"),
        (["fetch", "dinov3s"], "Did you mean 'dinov3-s"),
        (["verify", "dinov3s"], "Did you mean 'dinov3-s"),
        (["fetch", f"{NAME}=some.pth"], "takes no file"),
        (["status", NAME, "--weights-dir", "absent"], "is not a folder"),
        (["verify", "--weights-dir", "absent"], "is not a folder"),
        (["steal", NAME], "steal"),
    ],
)
def test_wrong_usage_ends_with_2(tmp_path: Path, hub: LocalHub, arguments: list[str], words: str) -> None:
    ran = run_command(tmp_path, "weights", *arguments)
    assert ran.code == 2
    assert words in ran.stderr
    assert hub.asked == []


def test_networks_of_volumes_are_not_fetched(tmp_path: Path, hub: LocalHub) -> None:
    volume = next(record for record in records() if record.dimensions == 3)
    row = _row(run_command(tmp_path, "weights", "fetch", volume.name, "--json"))
    assert "listed for comparison only" in row["reason"]
    assert hub.asked == []


# --- verify -----------------------------------------------------------------------------------------


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch should-not-exist",)


def _write_truncated(path: Path, content: bytes) -> None:
    path.write_bytes(content[: len(content) // 2])


def _write_code(path: Path, content: bytes) -> None:
    torch.save({"weight": torch.zeros(1), "trick": _Payload()}, path)


def _write_other(path: Path, content: bytes) -> None:
    path.write_bytes(save({"somewhere.weight": torch.zeros(2)}))


@pytest.mark.parametrize(
    ("file", "write", "words"),
    [
        ("a.safetensors", _write_truncated, "truncated or corrupt"),
        ("a.pth", _write_code, "pickled code"),
        ("a.safetensors", _write_other, "another architecture"),
        ("published-0123abcd.pth", _write_code, "wrong checksum: expected SHA-256 0123abcd"),
    ],
)
def test_verify_refuses_what_is_wrong_and_says_why(
    tmp_path: Path, content: bytes, file: str, write: Any, words: str
) -> None:
    write(tmp_path / file, content)
    row = _row(run_command(tmp_path, "weights", "verify", f"{NAME}={file}", "--json"))
    assert row["status"] == "failed"
    assert words in row["reason"]
    assert not (tmp_path / "should-not-exist").exists()


def test_verify_takes_names_files_and_both(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    ran = run_command(
        tmp_path, "weights", "verify", f"{NAME}=a.safetensors", "a.safetensors", "efficientnet-lite0", "--json"
    )
    both, alone, packaged = ran.json["rows"]
    assert ran.code == 0
    assert (both["encoder"], both["fits"]) == (NAME, True)
    assert (alone["encoder"], alone["fits"]) == (None, False)
    assert both["n_tensors"] == alone["n_tensors"] > 10
    assert packaged["compared_with"] == ["name of the file"]
    assert "NAME=a.safetensors" in ran.stderr


def test_verify_of_nothing_checks_all_that_is_here(tmp_path: Path, hub: LocalHub) -> None:
    rows = run_command(tmp_path, "weights", "verify", "--json").json["rows"]
    assert [row["encoder"] for row in rows] == ["efficientnet-lite0"]
    absent = run_command(tmp_path, "weights", "verify", "uni", "nowhere.pth", "--json")
    assert absent.code == 1
    assert "not on this machine" in absent.json["rows"][0]["reason"]
    assert "neither a file nor" in absent.json["rows"][1]["reason"]
    assert hub.asked == []


# --- bundle -----------------------------------------------------------------------------------------


def _tiles(side_px: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, side_px, side_px, 3), dtype=np.uint8)


def test_a_bundle_gives_the_same_vectors_on_a_machine_without_a_network(
    tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (NAME, "efficientnet-lite0")
    ran = run_command(tmp_path, "weights", "bundle", *names, "--to", "bundle", "--json")
    assert ran.code == 0
    before = {name: load_encoder(name, device="cpu", precision="fp32") for name in names}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("WSI_DINO_OFFLINE", "1")
    del hub.asked[:]
    for name, encoder in before.items():
        there = load_encoder(name, device="cpu", precision="fp32", weights_dir=tmp_path / "bundle")
        tiles = _tiles(encoder.input_px)
        np.testing.assert_array_equal(there.embed(tiles), encoder.embed(tiles))
        assert there.weights_sha256 == encoder.weights_sha256
        assert there.weights_revision == encoder.weights_revision
        assert there.weights_source == "file"
    assert hub.asked == []
    status = run_command(tmp_path, "weights", "status", *names, "--weights-dir", "bundle", "--json").json["rows"]
    assert {(row["where"], row["is_sha256_known"]) for row in status} == {("file", True)}
    verified = run_command(tmp_path, "weights", "verify", "--weights-dir", "bundle", "--json").json["rows"]
    assert {row["encoder"] for row in verified if "bundle" in row["compared_with"]} == set(names)


def _publish_transformers(hub: LocalHub, folder: Path, **options: Any) -> str:
    """Publish a small network of transformers; return its name as an encoder."""
    transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    network = transformers.ViTModel(transformers.ViTConfig(image_size=64, **settings))
    network.save_pretrained(folder, **options)
    size = {"size": {"height": 64, "width": 64}, "image_mean": [0.5] * 3, "image_std": [0.2] * 3, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(size))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repositories["somebody/tiny-vit"] = Repository(files)
    return "hf/somebody/tiny-vit"


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["one file", "parts"])
def test_networks_of_several_files_are_fetched_and_bundled_whole(
    tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    name = _publish_transformers(hub, tmp_path / "published", **options)
    unseen = _row(run_command(tmp_path, "weights", "status", name, "--json"))
    assert (unseen["where"], unseen["to_do"]) == ("hub", f"wsi-dino weights fetch {name}")
    assert hub.asked == []
    assert _row(run_command(tmp_path, "weights", "fetch", name, "--json"))["status"] == "fetched"
    assert _row(run_command(tmp_path, "weights", "status", name, "--json"))["where"] == "cache"
    before = load_encoder(name, device="cpu", precision="fp32")
    ran = run_command(tmp_path, "weights", "bundle", name, "--to", "bundle", "--json")
    assert (ran.code, _row(ran)["revision"]) == (0, "c" * 40)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("WSI_DINO_OFFLINE", "1")
    del hub.asked[:]
    there = load_encoder(name, device="cpu", precision="fp32", weights_dir=tmp_path / "bundle")
    np.testing.assert_array_equal(there.embed(_tiles(64)), before.embed(_tiles(64)))
    assert (there.weights_sha256, there.weights_revision) == (before.weights_sha256, before.weights_revision)
    verified = run_command(tmp_path, "weights", "verify", name, "--weights-dir", "bundle", "--json")
    assert (verified.code, _row(verified)["compared_with"]) == (0, ["bundle"])
    config = tmp_path / "bundle" / name.replace("/", "__") / "config.json"
    config.write_text(config.read_text() + " ")
    verified = run_command(tmp_path, "weights", "verify", name, "--weights-dir", "bundle", "--json")
    assert "config.json has the wrong checksum" in _row(verified)["reason"]
    with pytest.raises(WeightsError, match=r"config\.json has the wrong checksum"):
        load_encoder(name, device="cpu", precision="fp32", weights_dir=tmp_path / "bundle")
    assert hub.asked == []


def test_an_onnx_file_is_its_own_bundle(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 4))
    torch.onnx.export(network, (torch.zeros(1, 3, 16, 16),), tmp_path / "a.onnx", dynamo=False)
    (tmp_path / "a.onnx.json").write_text(json.dumps({"mean": [0.5] * 3, "std": [0.5] * 3}))
    assert _row(run_command(tmp_path, "weights", "status", "onnx/a.onnx", "--json"))["where"] == "file"
    assert _row(run_command(tmp_path, "weights", "verify", "onnx/a.onnx", "--json"))["fits"]
    refused = run_command(tmp_path, "weights", "bundle", "onnx/a.onnx", "--to", "bundle", "--json")
    assert refused.code == 1
    assert "it is the file a.onnx itself" in _row(refused)["reason"]


def test_a_bundle_says_what_it_is_and_under_which_terms(tmp_path: Path, hub: LocalHub, content: bytes) -> None:
    ran = run_command(tmp_path, "weights", "bundle", NAME, "--to", "bundle")
    assert "redistribution" in ran.stderr
    assert f"{NAME}: {get_record(NAME).licence}" in ran.stderr
    manifest = json.loads((tmp_path / "bundle" / NAME.replace("/", "__") / "bundle.json").read_text())
    assert manifest["sha256"] == hashlib.sha256(content).hexdigest()
    assert (manifest["encoder"], manifest["source"]) == (NAME, get_record(NAME).source)
    assert (manifest["revision"], manifest["size_bytes"]) == ("c" * 40, len(content))
    assert manifest["licence"] == get_record(NAME).licence
    written = {path: path.read_bytes() for path in (tmp_path / "bundle").rglob("*") if path.is_file()}
    assert run_command(tmp_path, "weights", "bundle", NAME, "--to", "bundle").code == 0
    assert {path: path.read_bytes() for path in written} == written


def test_a_bundle_takes_a_file_of_ones_own(tmp_path: Path, hub: LocalHub, content: bytes) -> None:
    (tmp_path / "mine.safetensors").write_bytes(content)
    assert run_command(tmp_path, "weights", "bundle", f"{NAME}=mine.safetensors", "--to", "bundle").code == 0
    assert hub.asked == []
    folder = tmp_path / "bundle" / NAME.replace("/", "__")
    assert json.loads((folder / "bundle.json").read_text())["source"] == "file:mine.safetensors"
    found = run_command(tmp_path, "weights", "verify", folder / "mine.safetensors", "--json")
    assert (_row(found)["encoder"], _row(found)["compared_with"]) == (NAME, ["bundle"])
    with (folder / "mine.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"!")
    assert (
        "wrong checksum"
        in _row(run_command(tmp_path, "weights", "verify", NAME, "--weights-dir", "bundle", "--json"))["reason"]
    )


def test_a_damaged_bundle_is_mended_by_bundling_again(tmp_path: Path, hub: LocalHub, content: bytes) -> None:
    run_command(tmp_path, "weights", "bundle", NAME, "--to", "bundle")
    path = tmp_path / "bundle" / NAME.replace("/", "__") / "model.safetensors"
    path.write_bytes(b"damaged")
    assert run_command(tmp_path, "weights", "bundle", NAME, "--to", "bundle").code == 0
    assert path.read_bytes() == content


def test_what_is_not_public_is_bundled_from_a_file_alone(tmp_path: Path, hub: LocalHub) -> None:
    private = next(record for record in records() if not record.is_public and record.dimensions == 2)
    row = _row(run_command(tmp_path, "weights", "bundle", private.name, "--to", "bundle", "--json"))
    assert "no weights of it are public" in row["reason"]
    assert not (tmp_path / "bundle").exists()
    assert hub.asked == []


# --- embed ------------------------------------------------------------------------------------------


def test_embed_fetches_announces_and_stores_the_revision(tmp_path: Path, hub: LocalHub, content: bytes) -> None:
    from PIL import Image

    from wsi_dino.feature_file import read_feature_file

    (tmp_path / "slides").mkdir()
    Image.new("RGB", (600, 600), (200, 90, 160)).save(tmp_path / "slides" / "a.png")
    tiled = run_command(tmp_path, "tile", "slides", "--run", "run", "--mpp", "native", "--tile-px", 160)
    assert tiled.code == 0, tiled.stderr
    command = ("embed", "--run", "run", "--encoder", NAME, "--json")
    hub.repositories[get_record(NAME).source].gated = True
    refused = run_command(tmp_path, *command)
    assert (refused.code, refused.json["error"]["type"]) == (2, "HubError")
    assert "Accept the terms at" in refused.stderr
    hub.repositories[get_record(NAME).source].gated = False
    ran = run_command(tmp_path, *command)
    assert ran.code == 0, ran.stderr
    assert "Fetching model.safetensors" in ran.stderr
    (file,) = (tmp_path / "run" / "features").rglob("a.h5")
    provenance = read_feature_file(file).provenance
    assert provenance["weights_sha256"] == hashlib.sha256(content).hexdigest()
    assert (provenance["weights_source"], provenance["weights_revision"]) == ("hub", "c" * 40)
    written = file.read_bytes()
    file.unlink()
    assert run_command(tmp_path, *command).code == 0  # now from the cache
    assert file.read_bytes() == written
    assert len(hub.fetched()) == 1


# --- several processes, and one that dies -----------------------------------------------------------


_FETCH = """
from wsi_dino.encoders.hub import HubFile, ask_hub, fetch_file
print(fetch_file(HubFile("somebody/network", "weights.bin"), ask_hub(HubFile("somebody/network", "weights.bin"))))
"""


def _fetching(hub: LocalHub, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _FETCH], env=environment_of(hub, folder), text=True, stdout=-1)


def test_two_processes_fetch_one_file_once(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(2**20)
    with running_hub(**{"somebody/network": Repository({"weights.bin": content})}) as hub:
        hub.hold_after = 1000
        both = [_fetching(hub, tmp_path) for _ in range(2)]
        deadline = time.monotonic() + 60
        while sum(request[0] == "HEAD" for request in hub.asked) < 2 or not hub.fetched():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        hub.released.set()
        paths = {process.communicate(timeout=60)[0].strip() for process in both}
        assert len(hub.fetched()) == 1
    (path,) = paths
    assert Path(path).read_bytes() == content


def test_a_killed_download_is_gone_on_with(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(24 * 2**20)
    with running_hub(**{"somebody/network": Repository({"weights.bin": content})}) as hub:
        hub.hold_after = 22 * 2**20
        process = _fetching(hub, tmp_path)
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size >= 10 * 2**20 for path in tmp_path.rglob("*.incomplete")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        hub.hold_after = 0
        hub.released.set()
        path, _ = _fetching(hub, tmp_path).communicate(timeout=60)
        first, second = hub.fetched()
    assert (first[2], second[2].startswith("bytes=")) == ("", True)
    assert int(second[2].removeprefix("bytes=").rstrip("-")) >= 10 * 2**20
    assert Path(path.strip()).read_bytes() == content
    assert not list(tmp_path.rglob("*.incomplete"))
