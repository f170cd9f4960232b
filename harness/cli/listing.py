"""``harness list``."""

from __future__ import annotations

import click


@click.command(name="list")
@click.argument("what", type=click.Choice(["methods", "models", "suites"]))
def listing(what: str) -> None:
    """List methods, models or prompt suites."""
    rows = {"methods": _methods, "models": _models, "suites": _suites}[what]()
    width = max((len(name) for name, _ in rows), default=0)
    for name, about in rows:
        click.echo(f"{name:<{width}}  {about}".rstrip())


def _methods() -> list[tuple[str, str]]:
    from harness.registry import methods

    return [
        (name, point.value + (f"  ({point.dist.name} {point.dist.version})" if point.dist else ""))
        for name, point in methods().items()
    ]


def _models() -> list[tuple[str, str]]:
    from harness.models.table import BUNDLED

    rows = [(name, model.about) for name, model in BUNDLED.items()]
    return [*rows, ("<folder>", "any CogVideoX pipeline in diffusers format")]


def _suites() -> list[tuple[str, str]]:
    from harness.suites import bundled

    rows = [
        (name, f"{row.role}, version {row.version}, sha256 {row.sha256[:12]}; {row.about}")
        for name, row in bundled().items()
    ]
    return [*rows, ("<file>", "one's own: .txt, .csv or .jsonl")]
