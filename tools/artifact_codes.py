"""Digest what every method leaves on every family's miniature, to compare before and after.

    python tools/artifact_codes.py --out before.json          # in the tree as it was
    python tools/artifact_codes.py --out after.json --against before.json
    python tools/artifact_codes.py --home A --home B           # artifacts of two HARNESS_HOMEs

The digest goes over every tensor of the artifact (codes, steps, zero points, transforms,
what stays in high precision) and over what ``artifact.json`` says of each layer and of the step
policy; not over the options and versions that it records. The first two forms quantize miniature
pipelines with random weights; the last compares what two stores hold of the same model, row and
width, of each the newest.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
QUICK = {"samples": 4, "epochs": 1, "iterations": 8, "timesteps": 2}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "s2q": [{"text_tokens": "video", "inputs": "quantized", "rounding": "rtn"}],
    "ptq4dit": [{"token_weights": True, "balance_ff_out": True, "selection": "sds"}],
    "qdit": [{"search": True, "rounds": 1, "population": 4, "parents": 2}],
    "qvdit": [{"ff_bits": 8, "inner_rank": 2}],
    "qvlm": [{"activations": "static", "search": "both", "search_samples": 2}],
    "viditq": [{"balanced": "attention"}, {"mixed": "metric-decoupled", "text_metric": "output"}],
    "dvdquant": [{"arq": "literal"}],
    "svdquant": [{"rank": 2, "rounding": "rtn", "points": 4}],
    "gptq": [{"group": 16, "act_order": True}],
    "rtn": [{"group": 16, "modulation": "fp"}],
    "quarot": [{"rounding": "rtn"}],
    "smoothquant": [{"search": False, "online": False}],
    "flatquant": [{"selection": "c_diff"}],
}
"""Options beside the defaults, so that what is not on by default is compared too."""


def model_digest(folder: Path) -> str:
    """sha256 over names, types, shapes and bytes of all tensors of an artifact, and its layers."""
    manifest = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
    said = {name: manifest.get(name) for name in ("layers", "shared", "kept_dtypes", "step_policy")}
    sha = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    files = manifest.get("files", ["weights.safetensors"])
    tensors = {k: v for file in files for k, v in load_file(folder / file).items()}
    for name, value in sorted(tensors.items()):
        kind = str(value.dtype).removeprefix("torch.")
        sha.update(f"{name} {kind} {tuple(value.shape)}".encode())
        # as bytes: NumPy, which the rest of the digest is spelled by, has no bfloat16
        sha.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def miniature_codes(bits: str, only: list[str], families: list[str]) -> dict[str, str]:
    """Digest by ``family method variant bits``; the reason where a row cannot be made."""
    sys.path.insert(0, str(ROOT))
    from importlib.metadata import entry_points

    from harness.errors import HarnessError
    from harness.models.families import FAMILIES

    bench_of = __import__("harness.testing.conformance", fromlist=["make_bench"])
    from harness.bits import BitSpec

    points = {p.name: p for p in entry_points(group="harness.methods")}
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for family in families or FAMILIES:
            folder = Path(scratch) / family
            folder.mkdir()
            bench = bench_of.make_bench(family, folder)
            for name in only or sorted(points):
                kind = points[name].load()
                method = kind()
                if method.unquantized:
                    continue
                known = {f.name for f in dataclasses.fields(method.Options)}
                quick = {k: v for k, v in QUICK.items() if k in known}
                for extra in [{}, *VARIANTS.get(name, [])]:
                    for width in (bits, "w8a8", "w4a16"):
                        if method.supports(family, BitSpec.parse(width)) is None:
                            break
                    else:
                        continue
                    label = f"{family} {name} {json.dumps(extra, sort_keys=True)} {width}"
                    try:
                        _, out, _ = bench.quantize(method, {**quick, **extra}, width, "codes")
                        found[label] = model_digest(out)
                    except HarnessError as cause:
                        found[label] = cause.message
                    except BaseException as cause:  # pytest's Skipped is no Exception
                        if type(cause).__name__ != "Skipped":
                            raise
                        found[label] = str(cause)
                    print(f"{found[label][:16]:<16}  {label}", flush=True)
    return found


def store_codes(home: Path) -> dict[str, str]:
    """Digest by ``model label bits`` of the newest artifact of each row in a store."""
    newest: dict[str, tuple[str, str]] = {}
    for path in (home / "store" / "artifact").glob("??/*/manifest.json"):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        about = manifest["about"]
        row = f"{about['model']['name']} {about['label']} {about['bits']}"
        entry = (manifest["at"], model_digest(path.parent))
        newest[row] = max(newest.get(row, ("", "")), entry)
    return {row: digest for row, (_, digest) in newest.items()}


def compare(before: dict[str, str], after: dict[str, str]) -> int:
    """Print what differs; returns the exit code."""
    same = [row for row in before if after.get(row) == before[row]]
    other = [row for row in before if row in after and after[row] != before[row]]
    alone = sorted(set(before) ^ set(after))
    for row in other:
        print(f"DIFFERS  {row}")
    for row in alone:
        print(f"only {'before' if row in before else 'after'}  {row}")
    print(f"{len(same)} identical, {len(other)} different, {len(alone)} on one side only")
    return 1 if other or not same else 0


def main() -> int:
    """Digest, and compare where there is something to compare with."""
    parser = argparse.ArgumentParser(description="Compare what methods leave, tensor by tensor.")
    parser.add_argument("--bits", default="w4a4")
    parser.add_argument("--method", action="append", default=[], help="only this one; again")
    parser.add_argument("--family", action="append", default=[], help="only this one; again")
    parser.add_argument("--out", type=Path, help="write the digests of the miniatures here")
    parser.add_argument("--against", type=Path, help="compare with digests written before")
    parser.add_argument("--home", type=Path, action="append", default=[], help="two HARNESS_HOMEs")
    chosen = parser.parse_args()
    if chosen.home:
        if len(chosen.home) != 2:
            parser.error("give --home twice")
        return compare(*(store_codes(home) for home in chosen.home))
    found = miniature_codes(chosen.bits, chosen.method, chosen.family)
    if chosen.out:
        chosen.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    if chosen.against:
        before = json.loads(chosen.against.read_text())
        kept = {row: digest for row, digest in before.items() if _asked(row, chosen)}
        return compare(kept, found)
    return 0


def _asked(row: str, chosen: argparse.Namespace) -> bool:
    """Whether a row is among those that were asked for."""
    family, name = row.split()[:2]
    return (not chosen.method or name in chosen.method) and (
        not chosen.family or family in chosen.family
    )


if __name__ == "__main__":
    sys.exit(main())
