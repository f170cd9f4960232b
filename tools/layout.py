"""Print the structure of the packages: rooms, levels, arrows between rooms, circles.

    python tools/layout.py [--rooms] [--modules] [--sizes]

A *room* is a folder of ``harness/`` with all that lies below it, a file at its root, or one of the
packages beside it. An *arrow* leads from a room to one that it imports, imports for type checkers
alone included. A room stands one *level* above the highest room that it imports; rooms of a circle
stand on one level. ``--rooms`` prints each room with its level and what it imports, ``--modules``
the circles between single modules, ``--sizes`` the longest functions and files: lines of a function
from its ``def`` to its end without its docstring, all lines of a file.
"""

from __future__ import annotations

import argparse
import ast
import graphlib
import sys
from collections import defaultdict
from pathlib import Path

import grimp

PACKAGES = ("harness", "methods", "baselines", "prompts")
ROOT = Path(__file__).resolve().parents[1]
# The scoring environment's worker: it runs in another interpreter and nothing here imports it.
FOREIGN = "harness.vbench.foreign"

Graph = dict[str, set[str]]


def module_graph() -> Graph:
    """Modules by what they import, type-checking imports included."""
    sys.path.insert(0, str(ROOT))
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=False, cache_dir=None)
    return {
        name: set(graph.find_modules_directly_imported_by(name))
        for name in graph.modules
        if not name.startswith(FOREIGN)
    }


def room_of(module: str) -> str:
    """The room that a module stands in."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "harness" else parts[0]


def room_graph(modules: Graph) -> Graph:
    """Rooms by the rooms that they import."""
    rooms: Graph = {room_of(name): set() for name in modules}
    for name, imported in modules.items():
        for other in imported:
            if other in modules and room_of(other) != room_of(name):
                rooms[room_of(name)].add(room_of(other))
    return rooms


def circles(graph: Graph) -> list[list[str]]:
    """Strongly connected components of more than one node, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node] & graph.keys()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            part = []
            while not part or part[-1] != node:
                part.append(stack.pop())
            if len(part) > 1:
                found.append(sorted(part))

    sys.setrecursionlimit(10_000)
    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(found)


def levels(rooms: Graph) -> dict[str, int]:
    """Level of every room, from 1."""
    shared = {room: circle[0] for circle in circles(rooms) for room in circle}
    merged: Graph = defaultdict(set)
    for room, imported in rooms.items():
        own = shared.get(room, room)
        merged[own] |= {shared.get(other, other) for other in imported} - {own}
    found: dict[str, int] = {}
    for room in graphlib.TopologicalSorter(merged).static_order():
        found[room] = 1 + max((found[other] for other in merged[room]), default=0)
    return {room: found[shared.get(room, room)] for room in rooms}


def function_lines(path: Path) -> dict[str, int]:
    """Lines of each function of a file, without its docstring, by place and name."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first, held = node.body[0], ast.get_docstring(node) is not None
            told = (first.end_lineno or 0) - first.lineno + 1 if held else 0
            place = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
            found[place] = (node.end_lineno or 0) - node.lineno + 1 - told
    return found


def print_sizes() -> None:
    """Print how many functions and files are long, and which."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    functions = {place: n for path in paths for place, n in function_lines(path).items()}
    files = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in paths
    }
    for title, sizes, limit in (("functions", functions, 40), ("files", files, 400)):
        long = {name: n for name, n in sizes.items() if n > limit}
        print(f"{title} of more than {limit} lines: {len(long)} of {len(sizes)}")
        for name in sorted(long, key=lambda name: -long[name]):
            print(f"  {long[name]:>4}  {name}")
    longest = max(files, key=lambda name: files[name])
    print(f"longest file: {longest}, {files[longest]} lines")


def main() -> None:
    """Print the figures and, where asked for, what stands behind them."""
    parser = argparse.ArgumentParser(description="Print rooms, levels, arrows and circles.")
    parser.add_argument("--rooms", action="store_true", help="each room: level and imports")
    parser.add_argument("--modules", action="store_true", help="circles of single modules")
    parser.add_argument("--sizes", action="store_true", help="long functions and long files")
    chosen = parser.parse_args()
    modules = module_graph()
    rooms = room_graph(modules)
    standing = levels(rooms)
    root = sorted(p.name for p in (ROOT / "harness").glob("*.py"))
    print(f"files at the root of harness/: {len(root)} ({', '.join(root)})")
    print(f"rooms: {len(rooms)}")
    print(f"levels: {max(standing.values())}")
    print(f"arrows between rooms: {sum(map(len, rooms.values()))}")
    print(f"circles of rooms: {len(circles(rooms))}")
    for circle in circles(rooms):
        print(f"  {', '.join(circle)}")
    between = circles(modules)
    print(f"circles of modules: {len(between)}")
    if chosen.modules:
        for circle in between:
            print(f"  {', '.join(circle)}")
    if chosen.rooms:
        for room in sorted(rooms, key=lambda name: (-standing[name], name)):
            print(f"{standing[room]:>3}  {room}: {', '.join(sorted(rooms[room])) or '-'}")
    if chosen.sizes:
        print_sizes()


if __name__ == "__main__":
    main()
