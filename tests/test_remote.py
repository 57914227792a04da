"""An object store as a folder: fetched whole and checked, results sent back; against a server on this machine."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run_command
from PIL import Image

from wsi_dino.errors import ConfigError, StorageError
from wsi_dino.remote import RemoteFolder, as_url, is_remote

_TILE = ("tile", "s3://archive/slides", "--mpp", "native", "--a-t", "0.2", "--run")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def store(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bucket with four slides; credentials and address are in the environment alone."""
    import boto3
    from s3fs import S3FileSystem

    for name, value in {
        "AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "WSI_DINO_CACHE": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="archive")
    (tmp_path / "slides" / "deep").mkdir(parents=True)
    for number in range(4):
        noise = np.random.default_rng(number).normal(0, 18, (460, 690, 3))
        pixels = np.clip(np.array([190, 110, 170]) + noise, 0, 255).astype(np.uint8)
        name = f"{'deep/' * (number % 2)}S{number}.png"
        Image.fromarray(pixels).save(tmp_path / "slides" / name)
        client.upload_file(str(tmp_path / "slides" / name), "archive", f"slides/{name}")
    yield client
    for item in client.list_objects_v2(Bucket="archive").get("Contents", []):
        client.delete_object(Bucket="archive", Key=item["Key"])
    client.delete_bucket(Bucket="archive")


def _names(store: Any, prefix: str = "") -> list[str]:
    return [item["Key"] for item in store.list_objects_v2(Bucket="archive", Prefix=prefix).get("Contents", [])]


def _tiles(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "tiles").glob("*.h5"))}


def test_address_survives_a_detour_over_path() -> None:
    assert as_url(Path("s3://bucket/a/b/")) == "s3://bucket/a/b"
    assert not any(map(is_remote, ("slides", "/data/s3", "C:/slides", "a:b/c")))


@pytest.mark.usefixtures("store")
def test_fetched_folder_is_the_stored_one_and_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RemoteFolder("s3://archive/slides").fetch(tmp_path / "copy")
    for path in (tmp_path / "slides").rglob("*.png"):
        assert (folder / path.relative_to(tmp_path / "slides")).read_bytes() == path.read_bytes()
    again = RemoteFolder("s3://archive/slides")
    monkeypatch.setattr(again, "_fetch_one", lambda *_: pytest.fail("nothing has changed"))
    again.fetch(folder)


def test_changed_and_damaged_files_are_fetched_again(store: Any, tmp_path: Path) -> None:
    folder = RemoteFolder("s3://archive/slides").fetch(tmp_path / "copy")
    store.put_object(Bucket="archive", Key="slides/S0.png", Body=b"changed")
    (folder / "S2.png").write_bytes(b"cut off")
    RemoteFolder("s3://archive/slides").fetch(folder)
    assert (folder / "S0.png").read_bytes() == b"changed"
    assert (folder / "S2.png").read_bytes() == (tmp_path / "slides" / "S2.png").read_bytes()


@pytest.mark.usefixtures("store")
def test_file_that_comes_other_than_it_was_stored_is_refused(tmp_path: Path) -> None:
    remote = RemoteFolder("s3://archive/slides")

    def wrong(path: str, target: str) -> None:
        n_bytes = (tmp_path / "slides" / path.removeprefix("archive/slides/")).stat().st_size
        Path(target).write_bytes(b"x" * n_bytes)

    remote._files.get_file = wrong
    try:
        with pytest.raises(StorageError, match="not what the store says"):
            remote.fetch(tmp_path / "copy")
    finally:
        del remote._files.get_file
    assert not list((tmp_path / "copy").rglob("*.png"))


@pytest.mark.usefixtures("store")
def test_nothing_at_an_address_is_said() -> None:
    with pytest.raises(ConfigError, match="there is nothing"):
        RemoteFolder("s3://archive/nowhere").fetch(Path("never"))


def test_slides_and_run_in_a_store_give_the_files_of_local_ones(store: Any, tmp_path: Path) -> None:
    assert run_command(tmp_path, "tile", "slides", *_TILE[2:], "local").code == 0
    ran = run_command(tmp_path, *_TILE, "s3://archive/run", "--json")
    assert ran.code == 0, ran.stderr
    assert ran.json["done"] == 4
    for name, content in _tiles(tmp_path / "local").items():
        assert store.get_object(Bucket="archive", Key=f"run/tiles/{name}")["Body"].read() == content
    assert "run/tiles.csv" in _names(store)
    assert not [name for name in _names(store) if "/claims/" in name or "/workers/" in name or ".tmp" in name]
    # another machine goes on from the store alone
    shutil.rmtree(tmp_path / "cache")
    again = run_command(tmp_path, *_TILE, "s3://archive/run")
    assert again.code == 0
    assert "0 new or changed files" in again.stderr or "1 new or changed files" in again.stderr


def test_parts_on_machines_without_a_shared_folder_meet_in_the_store(store: Any, tmp_path: Path) -> None:
    for part in ("1/2", "2/2"):
        assert run_command(tmp_path, *_TILE, "s3://archive/parts", "--shard", part).code == 0
        shutil.rmtree(tmp_path / "cache")
    assert "parts/tiles.csv" not in _names(store)
    ran = run_command(tmp_path, *_TILE, "s3://archive/parts", "--json")
    assert (ran.code, ran.json["done"]) == (0, 4)
    table = store.get_object(Bucket="archive", Key="parts/tiles.csv")["Body"].read().decode()
    assert [row["slide_id"] for row in csv.DictReader(table.splitlines())] == ["S0", "S1", "S2", "S3"]


def _refused(folder: Path, *words: str) -> str:
    ran = run_command(folder, *words)
    assert ran.code == 2, ran.stderr
    assert "AWS_ENDPOINT_URL" in ran.stderr
    return ran.stderr


@pytest.mark.usefixtures("store")
def test_a_store_that_is_not_there_is_told_before_and_after_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile = ("tile", "slides", *_TILE[2:])
    said = _refused(tmp_path, *tile, "s3://nobodys/run")
    assert "Writing to s3://nobodys/run" in said
    (kept,) = (tmp_path / "cache").rglob("tiles.csv")
    assert str(kept.parent) in said
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert "Looking into s3://archive/run" in _refused(tmp_path, *tile, "s3://archive/run")
    assert "Looking into s3://archive/slides" in _refused(tmp_path, *_TILE, "run")


def test_paper_run_takes_no_addresses(tmp_path: Path) -> None:
    (tmp_path / "ROOTS.yaml").write_text("nih14: s3://archive/nih14\n")
    for run, told in (("RUN", "ROOTS.yaml, nih14: s3://archive/nih14"), ("s3://archive/run", "--run s3://archive/run")):
        ran = run_command(tmp_path, "paper", "run", "--data", "ROOTS.yaml", "--run", run, "--encoder", "resnet50")
        assert ran.code == 2
        assert told in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["ROOTS.yaml"]


@pytest.mark.usefixtures("store")
def test_workers_cannot_share_a_run_where_no_claim_can_be_held(tmp_path: Path) -> None:
    ran = run_command(tmp_path, *_TILE, "s3://archive/run", "--launcher", "local")
    assert ran.code == 2
    assert "--shard" in ran.stderr
