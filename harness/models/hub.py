"""Models of the hub: their ids, what they are normally run with, and the lock of their revisions.

No revision stands in this file: which commit an id means is asked when it is first used, written
to ``$HARNESS_HOME/hub-lock.json``, and is that commit from then on. Records say so.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.models.families import family_name_of
from harness.models.repository import check_repository
from harness.spec import GenSpec, ModelSpec
from harness.store.durable import replace_file
from harness.store.store import home, now

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MODEL_INDEX = "model_index.json"
LOCK = "hub-lock.json"
TWO_DENOISERS = "transformer_2"

# Sizes, steps, guidance and text lengths are the defaults of the pipelines' __call__ in diffusers
# 0.42.1; frames a second those of their documentation examples. Weights are run in the dtype of the
# same examples.
FAMILY_GEN = {
    # size and frames: the model card of zai-org/CogVideoX1.5-5B, which tabulates all variants
    "cogvideox": GenSpec(
        height=480, width=720, frames=49, fps=8, steps=50, guidance=6.0, dtype="bfloat16",
        max_text_tokens=226,
    ),
    "hunyuanvideo": GenSpec(
        height=720, width=1280, frames=129, fps=15, steps=50, guidance=6.0, dtype="bfloat16",
        max_text_tokens=256,
    ),
    "wan": GenSpec(
        height=480, width=832, frames=81, fps=16, steps=50, guidance=5.0, dtype="bfloat16",
        max_text_tokens=512,
    ),
    "ltx": GenSpec(
        height=512, width=704, frames=161, fps=25, steps=50, guidance=3.0, dtype="bfloat16",
        max_text_tokens=128,
    ),
    # the text length is fixed in the pipeline
    "latte": GenSpec(
        height=512, width=512, frames=16, fps=8, steps=50, guidance=7.5, dtype="float16",
        max_text_tokens=120,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class HubModel:
    """A model by its short name.

    Attributes:
        repo: Hub id of a repository in diffusers format.
        family: Name of the family.
        gen: What it is normally run with.
        about: One line for the list.
    """

    repo: str
    family: str
    gen: GenSpec
    about: str = ""


def _model(repo: str, family: str, about: str, **changes: Any) -> HubModel:
    gen = replace(FAMILY_GEN[family], **changes)
    return HubModel(repo=repo, family=family, gen=gen, about=f"{about}; hub: {repo}")


HUB = {
    # the 2B weights are half precision, for which its model card rules bfloat16 out
    "cogvideox-2b": _model(
        "zai-org/CogVideoX-2b", "cogvideox", "CogVideoX 2B", dtype="float16"
    ),
    "cogvideox-5b": _model("zai-org/CogVideoX-5b", "cogvideox", "CogVideoX 5B"),
    "hunyuanvideo": _model(
        "hunyuanvideo-community/HunyuanVideo", "hunyuanvideo", "HunyuanVideo 13B, distilled"
    ),
    "wan2.1-1.3b": _model("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "wan", "Wan 2.1, 1.3B"),
    "wan2.1-14b": _model("Wan-AI/Wan2.1-T2V-14B-Diffusers", "wan", "Wan 2.1, 14B"),
    # frames and their rate: discussion 6 of Wan-AI/Wan2.2-T2V-A14B-Diffusers; size: MindSpeed-MM,
    # examples/wan2.2/5B/t2v
    "wan2.2-ti2v-5b": _model(
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "wan", "Wan 2.2, 5B, from text",
        height=704, width=1280, frames=121, fps=24,
    ),
    "wan2.2-a14b": _model(
        "Wan-AI/Wan2.2-T2V-A14B-Diffusers", "wan", "Wan 2.2, two 14B experts: not supported yet"
    ),
    "ltx-video": _model("Lightricks/LTX-Video", "ltx", "LTX-Video"),
    "latte": _model("maxin-cn/Latte-1", "latte", "Latte-1"),
}  # fmt: skip


def is_hub_id(name: str) -> bool:
    """Whether a name has the form ``owner/repository``."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def hub_spec(name: str) -> ModelSpec:
    """Resolve a short name or a hub id; the hub is asked where this machine does not know yet.

    Raises:
        HarnessError: The hub cannot be asked, or the repository holds no model that is supported.
    """
    known = HUB.get(name) or next((m for m in HUB.values() if m.repo == name), None)
    repo = known.repo if known else name
    locked = lock(repo)
    index = _json(fetch(repo, MODEL_INDEX, locked["revision"]))
    refuse_two_denoisers(repo, index)
    check_repository(repo, locked["revision"], index)
    family = family_name_of(str(index.get("transformer", ["", ""])[1]))
    return ModelSpec(
        name=name.replace("/", "--"),
        repo=repo,
        family=family,
        gen=known.gen if known else FAMILY_GEN[family],
        revision=locked["revision"],
        locked=f"locked at first use, {locked['at']}",
    )


def refuse_two_denoisers(name: str, index: Mapping[str, Any]) -> None:
    """Hold back what is half supported: quantizing one of two denoisers would pass for the model.

    Args:
        name: What the user knows the model by.
        index: Content of its ``model_index.json``.

    Raises:
        HarnessError: The pipeline has a second denoiser.
    """
    if (index.get(TWO_DENOISERS) or [None])[0] is not None:
        raise HarnessError(
            f"model '{name}' has two denoisers ('transformer' and '{TWO_DENOISERS}'): an artifact "
            "holds one",
            "choose a Wan model with one denoiser: wan2.1-1.3b, wan2.1-14b, wan2.2-ti2v-5b",
        )


def lock(repo: str) -> dict[str, str]:
    """The commit that a hub id means on this machine: asked once, the same ever after.

    Returns:
        ``revision``, the commit, and ``at``, when it was locked.

    Raises:
        HarnessError: It is not locked yet and the hub cannot be asked.
    """
    path = home() / LOCK
    held: dict[str, dict[str, str]] = _json(path) if path.is_file() else {}
    if repo not in held:
        held[repo] = {"revision": ask_revision(repo), "at": now()}
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(held, indent=1, sort_keys=True) + "\n")
    return held[repo]


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
        raise _unreachable(f"{repo}/{file}", cause) from cause


def hub_parameters(spec: ModelSpec) -> int:
    """Number of parameters of a denoiser on the hub, from the headers of its weight files.

    Raises:
        HarnessError: The hub cannot be asked.
    """
    from huggingface_hub import HfApi

    api, folder = HfApi(), "transformer/"
    try:
        files = api.list_repo_files(spec.repo, revision=spec.revision)
        heads = [
            api.parse_safetensors_file_metadata(spec.repo, name, revision=spec.revision)
            for name in files
            if name.startswith(folder) and name.endswith(".safetensors")
        ]
    except Exception as cause:  # the client lets errors of its HTTP library through
        raise _unreachable(spec.repo, cause) from cause
    return sum(sum(head.parameter_count.values()) for head in heads)


def _unreachable(what: str, cause: Exception) -> HarnessError:
    reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    return HarnessError(
        f"'{what}' cannot be read from the hub: {reason}",
        "check the network and the id, or download the model and give the folder",
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise HarnessError(
            f"'{path}' cannot be read ({cause.__class__.__name__})", "delete it and try again"
        ) from cause
    return found
