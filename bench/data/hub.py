"""Minari's datasets on the Hugging Face Hub: which files a dataset id has there, and at which
revision. The questions are those of the Hub's public HTTP interface; a file's bytes come from its
`resolve` address, pinned to a commit."""

import os
import re
from typing import Any
from urllib.parse import quote, urlsplit

import requests

from bench.data.fetch import Wanted, get_json
from bench.data.minari import MINARI_ID
from bench.data.unpack import checked_name
from bench.errors import ConfigError, DataError

ENDPOINT = "https://huggingface.co"
REMOTE = "hf://farama-minari"  # Minari's own; MINARI_REMOTE names another
MANY_FILES = 10_000
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def endpoint(mirror: str | None = None) -> str:
    return (mirror or os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


def authorise(session: requests.Session) -> None:
    """Send HF_TOKEN, where there is one, to the Hub that it is of: HF_ENDPOINT's, encrypted or on
    this machine; not to a `mirror`, and not where the Hub redirects to."""
    token, home = os.environ.get("HF_TOKEN"), _origin(endpoint())
    if token and (home[0] == "https" or home[1] in THIS_MACHINE):
        session.auth = _Token(token, home)


class _Token(requests.auth.AuthBase):
    """The header of requests to one origin; requests drops it where one is redirected elsewhere."""

    def __init__(self, token: str, home: tuple[str, str, int | None]) -> None:
        self.token, self.home = token, home

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if request.url and _origin(request.url) == self.home:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request


def _origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port."""
    try:
        parts = urlsplit(url)
        usual = {"https": 443, "http": 80}.get(parts.scheme)
        return parts.scheme, parts.hostname or "", parts.port or usual
    except ValueError:  # no address; it fails where it is asked for
        return "", "", None


def place(dataset_id: str) -> tuple[str, str]:
    """Repository and the dataset's folder in it: `D4RL/door/human-v2` is `door/human-v2` of
    `farama-minari/D4RL`."""
    if not MINARI_ID.fullmatch(dataset_id):
        raise DataError(
            f"{dataset_id}: is no Minari id ([namespace/]name-v<number>); check the spelling"
        )
    kind, _, owner = os.environ.get("MINARI_REMOTE", REMOTE).partition("://")
    if kind != "hf" or not re.fullmatch(r"[-\w.]+", owner, re.ASCII):
        raise ConfigError(f"MINARI_REMOTE: only hf://NAME can be used here, not {kind}://{owner}")
    repository, _, folder = dataset_id.partition("/")
    return f"{owner}/{repository}", folder


def revision(dataset_id: str, mirror: str | None, session: requests.Session) -> str:
    """The commit that the repository's main branch is at."""
    url = f"{endpoint(mirror)}/api/datasets/{place(dataset_id)[0]}/revision/main"
    answer = _answer(url, get_json(url, session))
    commit = answer.get("sha") if isinstance(answer, dict) else None
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{7,64}", commit):
        raise DataError(f"{url}: names no commit; is HF_ENDPOINT or --mirror a Hub?")
    return commit


def listing(
    dataset_id: str, commit: str, mirror: str | None, session: requests.Session
) -> list[Wanted]:
    """The files of a dataset's folder `data`, which is all that loading reads.

    Raises `DataError` for hostile names and where there are none.
    """
    repository, folder = place(dataset_id)
    prefix = f"{folder}/" if folder else ""
    base = f"{endpoint(mirror)}/api/datasets/{repository}/tree/{commit}"
    url: str | None = f"{base}/{quote(prefix)}data?recursive=true"
    found: list[Wanted] = []
    while url:
        response = get_json(url, session)
        found += _page(url, _answer(url, response), dataset_id, commit, mirror)
        if len(found) > MANY_FILES:
            raise DataError(f"{url}: lists more than {MANY_FILES:,} files; that is no dataset")
        url = response.links.get("next", {}).get("url")
        if url and not url.startswith(base):
            raise DataError(f"{base}: the list goes on at {url}, which is elsewhere; not followed")
    if not found:
        raise DataError(f"{base}: lists no files of {dataset_id}; check the id")
    return found


def address(dataset_id: str, commit: str, name: str, mirror: str | None) -> str:
    """Where the bytes of a file of a dataset are."""
    repository, folder = place(dataset_id)
    path = quote(f"{folder}/{name}" if folder else name)
    return f"{endpoint(mirror)}/datasets/{repository}/resolve/{commit}/{path}"


def _answer(url: str, response: requests.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise DataError(f"{url}: answers no JSON; is HF_ENDPOINT or --mirror a Hub?") from error


def _page(url: str, rows: Any, dataset_id: str, commit: str, mirror: str | None) -> list[Wanted]:
    prefix = place(dataset_id)[1]
    prefix = f"{prefix}/" if prefix else ""
    try:
        files = [row for row in rows if row["type"] == "file"]
        return [_wanted(url, row, prefix, dataset_id, commit, mirror) for row in files]
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise DataError(
            f"{url}: lists files in a way that is not understood ({error!r})"
        ) from error


def _wanted(
    url: str, row: dict[str, Any], prefix: str, dataset_id: str, commit: str, mirror: str | None
) -> Wanted:
    """Large files have a sha256, small ones git's hash."""
    path = checked_name(url, row["path"])
    if not path.startswith(prefix + "data/"):
        raise DataError(f"{url}: lists {path!r}, which is outside the dataset; not downloaded")
    name = path.removeprefix(prefix)
    large = row.get("lfs") or {}
    if large and not re.fullmatch("[0-9a-f]{64}", large["oid"]):
        raise ValueError(f"{name} has no sha256")
    return Wanted(
        name=name,
        url=address(dataset_id, commit, name, mirror),
        size=int(large.get("size", row["size"])),
        sha256=large.get("oid"),
        git_oid=None if large else row["oid"],
    )
