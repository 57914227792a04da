"""Files of a hub: fetched whole or not at all, gone on with after a break, every refusal told apart."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_hub import ACCEPTED, NOT_ACCEPTED, LocalHub, Repository, hub_of_this_process

from wsi_dino.encoders.hub import HubFile, ask_hub, cached_file, discard_cached, fetch_file, has_token
from wsi_dino.errors import HubError, StorageError

_REPO, _FILE = "somebody/network", "folder/model.safetensors"
_CONTENT = bytes(range(256)) * 4000
_SHA256 = hashlib.sha256(_CONTENT).hexdigest()
_WANTED = HubFile(_REPO, _FILE)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with hub_of_this_process(tmp_path, monkeypatch) as hub:
        hub.repositories[_REPO] = Repository({_FILE: _CONTENT})
        yield hub


def _fetch(wanted: HubFile = _WANTED) -> Path:
    return fetch_file(wanted, ask_hub(wanted))


def _refusal(wanted: HubFile = _WANTED) -> HubError:
    with pytest.raises(HubError) as trouble:
        _fetch(wanted)
    return trouble.value


def test_a_file_is_fetched_once_and_found_afterwards_with_its_commit(hub: LocalHub) -> None:
    assert cached_file(_WANTED) is None
    answer = ask_hub(_WANTED)
    assert (answer.size_bytes, answer.etag, answer.revision) == (len(_CONTENT), _SHA256, "c" * 40)
    assert fetch_file(_WANTED, answer).read_bytes() == _CONTENT
    found = cached_file(_WANTED)
    assert found is not None
    assert found.parts[-3] == "c" * 40
    assert _fetch() == found
    assert len(hub.fetched()) == 1


def test_other_programs_find_the_file(hub: LocalHub) -> None:
    from huggingface_hub import hf_hub_download

    _fetch()
    assert Path(hf_hub_download(_REPO, _FILE, local_files_only=True)).read_bytes() == _CONTENT


def test_progress_ends_at_the_whole(hub: LocalHub) -> None:
    seen: list[tuple[int, int]] = []
    fetch_file(_WANTED, ask_hub(_WANTED), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(_CONTENT), len(_CONTENT))
    assert seen == sorted(seen)


def test_a_short_break_is_bridged(hub: LocalHub) -> None:
    hub.broken_after = [100_000, 200_000]
    assert _fetch().read_bytes() == _CONTENT
    spans = [request[2] for request in hub.fetched()]
    assert spans[0] == ""
    assert all(span.startswith("bytes=") for span in spans[1:])


def test_a_long_break_is_told_and_the_next_command_goes_on(hub: LocalHub) -> None:
    hub.broken_after = [300_000] + [0] * 20
    refusal = _refusal()
    assert refusal.kind == "interrupted"
    assert "goes on from there" in str(refusal)
    assert cached_file(_WANTED) is None
    hub.broken_after, hub.asked = [], []
    assert _fetch().read_bytes() == _CONTENT
    (request,) = hub.fetched()
    assert int(request[2].removeprefix("bytes=").rstrip("-")) > 0


def test_damaged_bytes_never_enter_the_cache(hub: LocalHub) -> None:
    hub.damaged = True
    refusal = _refusal()
    assert refusal.kind == "checksum"
    assert "damaged on the way" in str(refusal)
    assert cached_file(_WANTED) is None
    hub.damaged = False
    assert _fetch().read_bytes() == _CONTENT


def test_another_file_than_the_tested_one_is_not_kept(hub: LocalHub) -> None:
    wanted = HubFile(_REPO, _FILE, sha256="0" * 64)
    refusal = _refusal(wanted)
    assert refusal.kind == "checksum"
    assert "publishes now" in str(refusal)
    assert cached_file(wanted) is None


def test_a_leftover_that_is_too_long_is_not_built_upon(hub: LocalHub, tmp_path: Path) -> None:
    from huggingface_hub import constants

    blobs = Path(constants.HF_HUB_CACHE) / "models--somebody--network" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{_SHA256}.incomplete").write_bytes(b"x" * (len(_CONTENT) + 1))
    assert _fetch().read_bytes() == _CONTENT


def test_a_discarded_file_is_fetched_anew(hub: LocalHub) -> None:
    path = _fetch()
    path.resolve().write_bytes(b"rotten")
    discard_cached(path)
    assert cached_file(_WANTED) is None
    assert _fetch().read_bytes() == _CONTENT


# --- gates and tokens -------------------------------------------------------------------------------


def test_the_token_opens_a_gate_and_is_not_sent_on(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[_REPO].gated = True
    monkeypatch.setenv("HF_TOKEN", ACCEPTED)
    assert _fetch().read_bytes() == _CONTENT
    assert {request[3] for request in hub.asked if request[0] == "HEAD"} == {f"Bearer {ACCEPTED}"}
    assert [request[3] for request in hub.fetched()] == [""]


def test_a_token_file_counts_as_a_token(hub: LocalHub, tmp_path: Path) -> None:
    hub.repositories[_REPO].gated = True
    assert not has_token()
    (tmp_path / "token").write_text(f"{ACCEPTED}\n")
    assert has_token()
    assert _fetch().read_bytes() == _CONTENT


@pytest.mark.parametrize(
    ("token", "kind", "words"),
    [
        ("", "no-token", f"Accept the terms at https://huggingface.co/{_REPO}.*set HF_TOKEN"),
        (NOT_ACCEPTED, "terms", rf"awaits a review.*Accept them at https://huggingface.co/{_REPO} and"),
        ("hf_expired", "bad-token", "the access token is refused.*settings/tokens"),
    ],
)
def test_a_closed_gate_says_which_key_is_missing(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, token: str, kind: str, words: str
) -> None:
    hub.repositories[_REPO].gated = True
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=words) as trouble:
        _fetch()
    assert trouble.value.kind == kind
    assert hub.fetched() == []


@pytest.mark.parametrize(
    ("wanted", "kind", "words"),
    [
        (HubFile("somebody/else", _FILE), "no-repository", "no repository .*somebody/else, or it is private"),
        (HubFile(_REPO, "other.bin"), "no-file", "has no other.bin"),
        (HubFile(_REPO, _FILE, "d" * 40), "no-revision", "has no revision dddd"),
    ],
)
def test_what_is_not_there_is_named(hub: LocalHub, wanted: HubFile, kind: str, words: str) -> None:
    with pytest.raises(HubError, match=words) as trouble:
        _fetch(wanted)
    assert trouble.value.kind == kind


def test_a_busy_hub_is_asked_again_and_then_told(hub: LocalHub) -> None:
    hub.status = 503
    refusal = _refusal()
    assert refusal.kind == "server"
    assert "answered 503" in str(refusal)
    assert len(hub.asked) == 3


def test_no_hub_at_all_is_no_network(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    refusal = _refusal()
    assert refusal.kind == "no-network"
    assert "cannot be reached" in str(refusal)


@pytest.mark.parametrize("variable", ["WSI_DINO_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_an_environment_that_forbids_the_network_is_obeyed(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    assert _refusal().kind == "offline"
    assert hub.asked == []


def test_a_page_that_is_no_hub_is_said_to_be_none(hub: LocalHub) -> None:
    hub.status = 200
    refusal = _refusal()
    assert refusal.kind == "server"
    assert "not as a hub does" in str(refusal)


# --- the disk ---------------------------------------------------------------------------------------


def test_too_little_space_is_told_before_anything_is_fetched(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(StorageError, match=r"1\.0 MB are needed, 0\.0 MB are free.*HF_HOME"):
        _fetch()
    assert hub.fetched() == []


def test_a_cache_folder_that_is_a_file_is_named(hub: LocalHub, tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("")
    with pytest.raises(StorageError, match="Set HF_HOME"):
        _fetch()


def test_a_refusal_survives_the_way_between_processes() -> None:
    refusal = pickle.loads(pickle.dumps(HubError("because", "terms")))
    assert (str(refusal), refusal.kind) == ("because", "terms")
