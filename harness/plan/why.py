"""Why something is made again that the store had: what changed since, and when that was made."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.score.scorer import clips_of
from harness.store.keys import SCHEMA
from harness.store.manifests import sound_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.plan.cells import PlannedCell
    from harness.plan.plan import Plan
    from harness.store.keys import Keyed
    from harness.store.store import Store

# What a thing is, by kind; the other inputs say what it was made by, which may change.
_WHAT = {
    "artifact": ("model", "gen", "method", "options", "bits", "calibration", "seed"),
    "clip": ("quant", "execution", "gen", "prompt", "seed"),
    "score": ("clip", "reference", "scorer", "asked"),
}
# What keys of an earlier schema did not name, or named in another way.
_LATER = ("quant", "options", "execution")


def made_again(plan: Plan, store: Store) -> dict[str, str]:
    """Why rows are made again, by cell id; rows that are new, or found whole, are not in it."""
    past = _Past(store=store)
    found = {}
    for planned in plan.cells:
        if not planned.done and (why := past.why(planned)):
            found[planned.cell.id] = why
    return found


@dataclass(kw_only=True)
class _Past:
    """What the store holds, by kind and what it is."""

    store: Store
    _known: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def why(self, planned: PlannedCell) -> str:
        """What changed that made a row's own things be made again; empty where nothing did."""
        task = planned.task
        if planned.needs_quantizing and task.artifact is not None:
            return self._changed("artifact", task.artifact)
        for wanted in task.clips if planned.missing_clips else ():
            if self.store.find("clip", wanted.clip.key) is None and (
                why := self._changed("clip", wanted.clip)
            ):
                return why
        return self._rescored(planned) if planned.missing_scores else ""

    def _rescored(self, planned: PlannedCell) -> str:
        for wanted, clip, reference in clips_of(self.store, planned.task):
            for scorer in planned.scorers:
                if clip is None or scorer.outside or (scorer.paired and reference is None):
                    continue
                key = scorer.key(wanted.prompt, clip, reference)
                if self.store.find("score", key.key) is None and (
                    why := self._changed("score", key)
                ):
                    return f"scored by '{scorer.name}': {why}"
        return ""

    def _changed(self, kind: str, wanted: Keyed) -> str:
        """What differs from the newest thing that is the same but for what it was made by."""
        same = [m for m in self._manifests(kind) if _same(kind, m["inputs"], wanted.inputs)]
        if not same:
            return ""
        newest = max(same, key=lambda manifest: str(manifest["at"]))
        what = list(_differences(newest["inputs"], wanted.inputs, {*_WHAT[kind], "kind"}))
        return f"{', '.join(what)} since {str(newest['at'])[:10]}" if what else ""

    def _manifests(self, kind: str) -> list[dict[str, Any]]:
        if kind not in self._known:
            self._known[kind] = []
            for of, key, folder in self.store.entries():
                manifest = sound_manifest(of, key, folder) if of == kind else None
                if manifest is not None:
                    self._known[kind].append(manifest)
        return self._known[kind]


def _same(kind: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two inputs are of one thing, whatever it was made by."""
    earlier = before.get("schema") != SCHEMA
    return all(
        before.get(name) == now.get(name)
        for name in _WHAT[kind]
        if not (earlier and name in _LATER)
    )


def _differences(before: dict[str, Any], now: dict[str, Any], what: set[str]) -> Iterator[str]:
    """Words for each input that differs, beside what the thing is."""
    if before.get("schema") != now.get("schema"):
        yield f"keys changed (schema {before.get('schema')} to {now.get('schema')})"
        return
    for name in sorted({*before, *now} - what):
        old, new = before.get(name), now.get(name)
        if not isinstance(old, dict) or not isinstance(new, dict):
            old, new = {name: old}, {name: new}
        for part in sorted({*old, *new}):
            if old.get(part) != new.get(part):
                yield _change(part, old.get(part), new.get(part))


def _change(what: str, old: Any, new: Any) -> str:
    """``toolkit changed`` for a digest, ``torch 2.12.0 to 2.13.0`` for what can be read."""
    digests = re.compile("[0-9a-f]{16,}")
    if any(digests.fullmatch(str(value)) for value in (old, new)):
        return f"{what} changed"
    return f"{what} {old or 'none'} to {new or 'none'}"
