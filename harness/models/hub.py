"""Models of the hub: their ids, how a file is fetched, and the lock of their revisions.

No revision stands in this file: which commit an id means is asked when it is first used, written
to ``$HARNESS_HOME/hub-lock.json``, and is that commit from then on. Records say so.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.models.model_files import MODEL_INDEX as MODEL_INDEX
from harness.models.model_files import read_object
from harness.store.durable import replace_file
from harness.store.store import home, now

if TYPE_CHECKING:
    from pathlib import Path

LOCK = "hub-lock.json"
_DELETE = "delete it and try again"


@dataclass(frozen=True, kw_only=True, slots=True)
class HubModel:
    """A model by its short name.

    Attributes:
        repo: Hub id of a repository in diffusers format.
        about: One line for the list.
    """

    repo: str
    about: str


HUB = {
    name: HubModel(repo=repo, about=f"{about}; hub: {repo}")
    for name, repo, about in (
        ("cogvideox-2b", "zai-org/CogVideoX-2b", "CogVideoX 2B"),
        ("cogvideox-5b", "zai-org/CogVideoX-5b", "CogVideoX 5B"),
        ("hunyuanvideo", "hunyuanvideo-community/HunyuanVideo", "HunyuanVideo 13B, distilled"),
        (
            "hunyuanvideo-1.5-480p", "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v",
            "HunyuanVideo-1.5 8.3B, 480p",
        ),
        (
            "hunyuanvideo-1.5-720p", "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_t2v",
            "HunyuanVideo-1.5 8.3B, 720p",
        ),
        ("wan2.1-1.3b", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan 2.1, 1.3B"),
        ("wan2.1-14b", "Wan-AI/Wan2.1-T2V-14B-Diffusers", "Wan 2.1, 14B"),
        ("wan2.2-ti2v-5b", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "Wan 2.2, 5B, from text"),
        (
            "wan2.2-a14b", "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
            "Wan 2.2, two experts of 14B that take turns",
        ),
        ("ltx-video", "Lightricks/LTX-Video", "LTX-Video"),
        ("latte", "maxin-cn/Latte-1", "Latte-1"),
    )
}  # fmt: skip


def repository(name: str) -> str:
    """Hub id of a short name; an id as it is."""
    return HUB[name].repo if name in HUB else name


def is_hub_id(name: str) -> bool:
    """Whether a name has the form ``owner/repository``."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def lock(repo: str) -> dict[str, str]:
    """The commit that a hub id means on this machine: asked once, the same ever after.

    Returns:
        ``revision``, the commit, and ``at``, when it was locked.

    Raises:
        HarnessError: It is not locked yet and the hub cannot be asked.
    """
    path = home() / LOCK
    held = read_object(path, _DELETE) if path.is_file() else {}
    if repo in held and not _is_lock(held[repo]):
        raise HarnessError(f"'{path}' is damaged: '{repo}' has no commit there", _DELETE)
    if repo not in held:
        held[repo] = {"revision": ask_revision(repo), "at": now()}
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(held, indent=1, sort_keys=True) + "\n")
    found: dict[str, str] = held[repo]
    return found


def _is_lock(found: Any) -> bool:
    return isinstance(found, dict) and all(
        isinstance(found.get(k), str) for k in ("revision", "at")
    )


def ask_revision(repo: str) -> str:
    """Ask the hub for the commit of a repository's default branch; without it, the cache.

    Raises:
        HarnessError: Neither knows the repository.
    """
    revision = fetch(repo, MODEL_INDEX).parent.name  # the cache keeps snapshots by commit
    if re.fullmatch("[0-9a-f]{40}", revision) is None:
        raise HarnessError(
            f"the hub names no commit for '{repo}': '{revision}'",
            "download the model and give the folder",
        )
    return revision


def fetch(repo: str, file: str, revision: str | None = None) -> Path:
    """Download one file at a commit (None: of the default branch), or find it in the cache.

    Raises:
        HarnessError: It is in neither.
    """
    from pathlib import Path

    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, file, revision=revision))
    except (OSError, ValueError) as cause:
        raise unreachable(f"{repo}/{file}", cause) from cause


def unreachable(what: str, cause: Exception) -> HarnessError:
    """The error for what the hub did not give.

    Args:
        what: Repository and file.
        cause: What its client raised.
    """
    from huggingface_hub import errors

    reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    if isinstance(cause, errors.GatedRepoError):
        return HarnessError(
            f"'{what}' is given by the hub to those only who accepted its terms",
            "accept them on the page of the model, then `hf auth login` or set HF_TOKEN",
        )
    if isinstance(cause, errors.RepositoryNotFoundError):
        return HarnessError(
            f"'{what}' cannot be read from the hub: there is no such repository, or it is private",
            "check the id (owner/name), or give a folder; see `harness list models`",
        )
    if isinstance(cause, errors.RemoteEntryNotFoundError):
        return HarnessError(
            f"'{what}' cannot be read from the hub: the repository has no such file",
            "give a repository in diffusers format, often called ...-Diffusers or -diffusers",
        )
    return HarnessError(
        f"'{what}' cannot be read from the hub: {reason}",
        "check the network and the id, or download the model and give the folder",
    )
