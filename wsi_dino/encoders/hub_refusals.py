"""Why the hub did not give a file: its answers, and having none, told apart in words a user can act on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_dino.errors import HubError

if TYPE_CHECKING:
    from wsi_dino.encoders.hub import HubFile

_NEW_TOKEN = "https://huggingface.co/settings/tokens"
_BROKEN_STATUS = 500
_TOO_MANY = 429


def terms_page(repo: str) -> str:
    """Return the page of a repository, where terms are accepted; a mirror (``HF_ENDPOINT``) has none of its own.

    Examples:
        >>> terms_page("MahmoodLab/UNI")
        'https://huggingface.co/MahmoodLab/UNI'
    """
    return f"https://huggingface.co/{repo}"


def explain_refusal(wanted: HubFile, error: Exception | None, *, has_token: bool) -> HubError:
    """Return what an error of the hub's library means, with the page to go to or the thing to set.

    Args:
        wanted: the file that was asked for.
        error: what was raised; None when the environment forbids the network.
        has_token: whether an access token was sent.
    """
    kind, reason = _reason(wanted, error, has_token)
    return HubError(f"{wanted.file} of {wanted.repo} is not in the local cache, and {reason}.", kind)


def interrupted(wanted: HubFile, done_bytes: int, total_bytes: int, error: Exception) -> HubError:
    """Return the error of a download that broke off; what is there is kept."""
    return HubError(
        f"the download of {wanted.file} of {wanted.repo} broke off after {done_bytes / 1e6:.1f} of "
        f"{total_bytes / 1e6:.1f} MB ({_first_line(error)}). The same command goes on from there.",
        "interrupted",
    )


def _reason(wanted: HubFile, error: Exception | None, has_token: bool) -> tuple[str, str]:
    from huggingface_hub import errors

    if error is None or isinstance(error, errors.OfflineModeIsEnabled):
        return "offline", "the network is forbidden by WSI_DINO_OFFLINE, HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE"
    status = getattr(getattr(error, "response", None), "status_code", None)
    return _no_answer(error) if status is None else _answered(wanted, error, int(status), has_token)


def _no_answer(error: Exception) -> tuple[str, str]:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.FileMetadataError):
        return "server", f"{constants.ENDPOINT} answers, but not as a hub does. Check HF_ENDPOINT and proxies"
    return "no-network", f"the hub {constants.ENDPOINT} cannot be reached (no network: {_first_line(error)})"


def _answered(wanted: HubFile, error: Exception, status: int, has_token: bool) -> tuple[str, str]:
    from huggingface_hub import errors

    page = terms_page(wanted.repo)
    if isinstance(error, errors.GatedRepoError):  # a kind of "repository not found", so it comes first
        return _gated(page, error, has_token)
    by_type = {
        errors.RevisionNotFoundError: ("no-revision", f"{page} has no revision {wanted.revision}"),
        errors.EntryNotFoundError: ("no-file", f"{page} has no {wanted.file}{_at(wanted)}"),
        errors.RepositoryNotFoundError: (
            "no-repository",
            f"there is no repository {page}, or it is private and {_whose(has_token)}",
        ),
    }
    for error_type, reason in by_type.items():
        if isinstance(error, error_type):
            return reason
    if status == 403:
        return _gated(page, error, has_token)
    if status == 401:
        return "bad-token", f"the access token is refused (expired, or mistyped). Make a new one at {_NEW_TOKEN}"
    later = ". Try again later" if status >= _BROKEN_STATUS or status == _TOO_MANY else ""
    return "server", f"the hub answered {status}{_own_words(error)}{later}"


def _gated(page: str, error: Exception, has_token: bool) -> tuple[str, str]:
    if not has_token:
        return (
            "no-token",
            f"no access token is set. Accept the terms at {page}, make a token at {_NEW_TOKEN} and set HF_TOKEN to it",
        )
    return (
        "terms",
        f"the terms are not accepted yet for this token{_own_words(error)}. Accept them at {page} and try again",
    )


def _whose(has_token: bool) -> str:
    return "not open to this access token" if has_token else "no access token is set"


def _at(wanted: HubFile) -> str:
    return f" at revision {wanted.revision[:12]}" if wanted.revision else ""


def _own_words(error: Exception) -> str:
    """Return what the hub says itself, e.g. that a request is awaiting review."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    text = str(headers.get("x-error-message", "")).strip().splitlines()
    return f' ("{text[0][:200]}")' if text else ""


def _first_line(error: Exception) -> str:
    """Return the first line of the innermost cause, which names the real trouble."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
