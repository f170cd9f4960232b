"""Rows in parts: what of a row can be made on another device than the rest of it.

A row is one worker, except where several devices stand ready: then its artifact is made while the
reference clips are, and its clips are dealt out over the devices that have nothing else to do. Each
part is a worker like that of a whole row; to all others the parts are one row.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.spec import Status
from harness.task import CellTask, Ended

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from harness.plan.cells import PlannedCell
    from harness.task import Event, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A task with what it waits for.

    Attributes:
        row: Id under which the user sees it and others wait for it; that of its row for a part.
        waits: Ids that must have ended.
        must: Those of them that must have ended well.
        most: Workers that it can be dealt out to.
    """

    task: Task
    row: str
    waits: AbstractSet[str] = frozenset()
    must: AbstractSet[str] = frozenset()
    most: int = 1


def nodes_of(cell: PlannedCell, *, known: AbstractSet[str], apart: bool) -> list[Node]:
    """The tasks of a row.

    Args:
        cell: The row.
        known: Ids of what is made in this run; nothing else is waited for.
        apart: Quantize in a worker of its own, which need not wait for the reference clips.
    """
    row = cell.cell.id
    pool = {cell.pool} & known if cell.needs_quantizing else set()
    reference = {cell.waits_for} & known
    most = max(1, cell.missing_clips)
    if not (apart and cell.needs_quantizing and reference):
        waits = pool | reference
        return [Node(task=cell.task, row=row, waits=waits, must=pool, most=most)]
    first = Node(
        task=replace(cell.task, id=f"{row}--quantize", clips=()), row=row, waits=pool, must=pool
    )
    made = {first.task.id}
    return [first, Node(task=cell.task, row=row, waits=made | reference, must=made, most=most)]


def dealt_out(node: Node, workers: int) -> list[Node]:
    """A node in at most so many parts, each with its share of the clips, in turn."""
    task, count = node.task, min(workers, node.most)
    if count < 2 or not isinstance(task, CellTask):
        return [node]
    return [
        replace(
            node,
            task=replace(task, id=f"{task.id}--{i + 1}of{count}", clips=task.clips[i::count]),
            most=1,
        )
        for i in range(count)
    ]


@dataclass(kw_only=True)
class Rows:
    """Which parts of each row are still to end, and how the others did."""

    rows: dict[str, str] = field(default_factory=dict)
    open: dict[str, set[str]] = field(default_factory=dict)
    ends: dict[str, list[Ended]] = field(default_factory=dict)
    shares: dict[str, dict[str, float]] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)

    def expect(self, node: Node) -> None:
        """A node will be run."""
        self.rows[node.task.id] = node.row
        self.open.setdefault(node.row, set()).add(node.task.id)

    def deal_out(self, node: Node, parts: list[Node]) -> None:
        """A node is run as parts."""
        self.open[node.row].discard(node.task.id)
        for part in parts:
            self.expect(part)
        if len(parts) > 1:
            self.shares[node.row] = {part.task.id: 0.0 for part in parts}

    def start(self, task: str) -> bool:
        """A part was started; returns whether it is the first of its row."""
        row = self.rows.get(task, task)
        first = row not in self.started
        self.started.setdefault(row, time.monotonic())
        return first

    def seen_as(self, event: Event) -> Event:
        """An event of a part as one of its row, its progress that of all its parts."""
        row = self.rows.get(event.task, event.task)
        facts: dict[str, Any] = event.facts
        shares = self.shares.get(row, {})
        if event.task in shares and event.name == "progress":
            shares[event.task] = float(facts["fraction"])
            facts = {**facts, "fraction": sum(shares.values()) / len(shares)}
        return replace(event, task=row, facts=facts)

    def end(self, ended: Ended) -> Ended | None:
        """A part ended.

        Returns:
            How the row ended, where that was its last part: as the first part that failed.
        """
        row = self.rows.get(ended.task, ended.task)
        left, ends = self.open.setdefault(row, set()), self.ends.setdefault(row, [])
        left.discard(ended.task)
        ends.append(ended)
        if ended.task in self.shares.get(row, {}):
            self.shares[row][ended.task] = 1.0
        if left:
            return None
        if len(ends) == 1:
            return replace(ended, task=row)
        told = next((one for one in ends if one.status is not Status.OK), ended)
        now = time.monotonic()
        return replace(told, task=row, seconds=now - self.started.get(row, now))
