"""Evolutionary search over one choice for each layer, under a budget.

The scheme of Q-DiT's released search script: a random population, of which the best of all seen so
far become parents; children by mutation and by crossover; what is missing is drawn at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Genome = tuple[int, ...]
"""One choice for each layer."""

TRIES = 10
"""Draws for each child that is wanted; what is over budget or known already is drawn again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evolution:
    """Sizes of the search.

    Attributes:
        population: Genomes of a round.
        parents: Best genomes of all seen that have children.
        mutations: Children by mutation in a round.
        crossovers: Children by crossover in a round.
        probability: Chance of each gene to mutate.
        rounds: Rounds after the first population.
    """

    population: int
    parents: int
    mutations: int
    crossovers: int
    probability: float
    rounds: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Evolved:
    """What a search found.

    Attributes:
        best: Genome with the smallest loss.
        loss: Its loss.
        curve: Smallest loss so far after the first population and after each round.
        evaluated: Genomes whose loss was computed.
    """

    best: Genome
    loss: float
    curve: tuple[float, ...]
    evaluated: int


def mutate(
    genome: Genome,
    choices: Sequence[Sequence[int]],
    probability: float,
    generator: torch.Generator,
) -> Genome:
    """Draw each gene anew with a probability."""
    chances = torch.rand(len(genome), generator=generator).tolist()
    drawn = random_genome(choices, generator)
    return tuple(
        new if chance < probability else old
        for old, new, chance in zip(genome, drawn, chances, strict=True)
    )


def crossover(first: Genome, second: Genome, generator: torch.Generator) -> Genome:
    """Take each gene from either parent alike."""
    coins = torch.rand(len(first), generator=generator).tolist()
    return tuple(a if c < 0.5 else b for a, b, c in zip(first, second, coins, strict=True))


def random_genome(choices: Sequence[Sequence[int]], generator: torch.Generator) -> Genome:
    """Draw every gene."""
    return tuple(
        options[int(torch.randint(len(options), (), generator=generator))] for options in choices
    )


def evolve(
    choices: Sequence[Sequence[int]],
    start: Genome,
    loss: Callable[[Genome], float],
    allowed: Callable[[Genome], bool],
    settings: Evolution,
    generator: torch.Generator,
    progress: Callable[[int], None],
) -> Evolved:
    """Search for the genome with the smallest loss.

    Args:
        choices: Values that each gene may take.
        start: A genome of the first population; the result is never worse than it.
        loss: What is minimised; called once for each genome.
        allowed: Whether a genome is within the budget.
        settings: Sizes.
        generator: Randomness.
        progress: Called with the number of genomes evaluated.

    Returns:
        The best genome. Where too few genomes are within the budget, populations are smaller.

    Raises:
        ValueError: ``start`` itself is over the budget.
    """
    if not allowed(start):
        raise ValueError("the first genome is over the budget")
    seen: dict[Genome, float] = {}

    def breed(count: int, draw: Callable[[], Genome]) -> int:
        born = 0
        for _ in range(TRIES * count):
            if born == count:
                break
            genome = draw()
            if genome in seen or not allowed(genome):
                continue
            seen[genome] = loss(genome)
            born += 1
            progress(len(seen))
        return born

    def anyone() -> Genome:
        return random_genome(choices, generator)

    breed(1, lambda: start)
    breed(settings.population - 1, anyone)
    curve = [min(seen.values())]
    parents: list[Genome] = []

    def parent() -> Genome:
        return parents[int(torch.randint(len(parents), (), generator=generator))]

    def mutant() -> Genome:
        return mutate(parent(), choices, settings.probability, generator)

    def crossed() -> Genome:
        return crossover(parent(), parent(), generator)

    for _ in range(settings.rounds):
        parents[:] = sorted(seen, key=seen.__getitem__)[: settings.parents]
        born = breed(settings.mutations, mutant) + breed(settings.crossovers, crossed)
        breed(settings.population - born, anyone)
        curve.append(min(seen.values()))
    best = min(seen, key=seen.__getitem__)
    return Evolved(best=best, loss=seen[best], curve=tuple(curve), evaluated=len(seen))
