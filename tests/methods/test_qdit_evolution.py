"""The evolutionary search against exhaustion, and its draws against their definitions."""

from __future__ import annotations

import itertools

import pytest
import torch

from methods.qdit.evolution import Evolution, Genome, crossover, evolve, mutate, random_genome

CHOICES = [(1, 2, 3, 4)] * 5
SETTINGS = Evolution(
    population=12, parents=5, mutations=6, crossovers=4, probability=0.3, rounds=12
)
WANTED = (4, 1, 3, 2, 4)


def distance(genome: Genome) -> float:
    return float(sum((a - b) ** 2 for a, b in zip(genome, WANTED, strict=True)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def silent(done: int) -> None:
    del done


def test_it_finds_what_exhaustion_finds_within_a_fraction_of_the_evaluations() -> None:
    def allowed(genome: Genome) -> bool:
        return sum(genome) <= 12

    every = [g for g in itertools.product(*CHOICES) if allowed(g)]
    least = min(distance(g) for g in every)
    found = evolve(CHOICES, (1,) * 5, distance, allowed, SETTINGS, generator(), silent)
    assert found.loss == distance(found.best) == least
    assert allowed(found.best)
    assert found.evaluated < len(every) / 2
    assert len(found.curve) == SETTINGS.rounds + 1
    assert list(found.curve) == sorted(found.curve, reverse=True)


def test_nothing_over_the_budget_is_evaluated_and_nothing_twice() -> None:
    asked: list[Genome] = []

    def loss(genome: Genome) -> float:
        asked.append(genome)
        return distance(genome)

    evolve(CHOICES, (1,) * 5, loss, lambda g: sum(g) <= 9, SETTINGS, generator(1), silent)
    assert len(asked) == len(set(asked)) > SETTINGS.population
    assert all(sum(g) <= 9 for g in asked)


def test_the_result_is_never_worse_than_the_start() -> None:
    few = Evolution(population=2, parents=1, mutations=1, crossovers=0, probability=0.1, rounds=1)
    for seed in range(5):
        found = evolve(CHOICES, WANTED, distance, lambda g: True, few, generator(seed), silent)
        assert found.best == WANTED


def test_a_budget_that_only_the_start_meets_ends_with_the_start() -> None:
    start = (1,) * 5
    found = evolve(CHOICES, start, distance, lambda g: g == start, SETTINGS, generator(), silent)
    assert (found.best, found.evaluated) == (start, 1)


def test_a_start_over_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="over the budget"):
        evolve(CHOICES, (1,) * 5, distance, lambda g: False, SETTINGS, generator(), silent)


def test_the_same_seed_finds_the_same() -> None:
    runs = [
        evolve(CHOICES, (1,) * 5, distance, lambda g: True, SETTINGS, generator(3), silent)
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_a_gene_mutates_with_its_probability_and_within_its_choices() -> None:
    draw = generator()
    genome, choices = (9,) * 1000, [(1, 2, 3)] * 1000
    assert mutate(genome, choices, 0.0, draw) == genome
    changed = mutate(genome, choices, 0.25, draw)
    assert set(changed) == {1, 2, 3, 9}
    assert 190 < sum(g != 9 for g in changed) < 310
    assert 9 not in mutate(genome, choices, 1.0, draw)


def test_a_child_has_each_gene_from_one_of_its_parents() -> None:
    child = crossover((1,) * 1000, (2,) * 1000, generator())
    assert set(child) == {1, 2}
    assert 430 < child.count(1) < 570


def test_random_genomes_take_every_choice_of_every_gene() -> None:
    draw = generator()
    seen = {random_genome([(1, 2), (3,), (4, 5, 6)], draw) for _ in range(200)}
    assert seen == set(itertools.product((1, 2), (3,), (4, 5, 6)))
