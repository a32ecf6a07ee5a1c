"""Search by evaluating sub-networks of a trained supernet: evolution, NSGA-II, random."""

from __future__ import annotations

import random
from dataclasses import dataclass

from torch import Tensor

from nasa.arch import Architecture
from nasa.data import LabelledImages
from nasa.hw.accelerator import Accelerator
from nasa.search.costs import true_cost
from nasa.search.result import Evaluated, SearchResult, pareto_front
from nasa.supernet import Supernet
from nasa.training import History, Progress, evaluate, recalibrate_batch_norm


class Evaluator:
    """Accuracy of a sub-network with the supernet's weights, and its mapped EDP; remembers both.

    Parameters
    ----------
    supernet : Supernet
    train : LabelledImages
        Batches that the batch norms are recalibrated with.
    validation : LabelledImages
        Never the test set.
    accelerator : Accelerator
    batches, batch_size : int
        Recalibration.
    """

    def __init__(
        self,
        supernet: Supernet,
        train: LabelledImages,
        validation: LabelledImages,
        accelerator: Accelerator,
        *,
        batches: int = 20,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        self.supernet, self.validation, self.accelerator = supernet, validation, accelerator
        self._batches: list[Tensor] = []
        epoch = 0
        while len(self._batches) < batches:
            for images, _ in train.batches(batch_size, seed + epoch):
                self._batches.append(images)
                if len(self._batches) == batches:
                    break
            epoch += 1
        self.seen: dict[tuple[int, ...], Evaluated] = {}

    def __call__(self, architecture: Architecture) -> Evaluated:
        """Evaluate an architecture, once."""
        if architecture.choices not in self.seen:
            edp, _ = true_cost(architecture, self.accelerator)
            accuracy = 0.0
            if edp < float("inf"):
                net = self.supernet.extract(architecture)
                recalibrate_batch_norm(net, self._batches)
                accuracy, _ = evaluate(net, self.validation)
            self.seen[architecture.choices] = Evaluated(architecture, accuracy, edp)
        return self.seen[architecture.choices]


def mutate(architecture: Architecture, rate: float, source: random.Random) -> Architecture:
    """Redraw each choice with a probability, at least one of them."""
    cells = architecture.space.cells
    forced = source.randrange(len(cells))
    choices = [
        source.randrange(len(cell.candidates)) if i == forced or source.random() < rate else choice
        for i, (cell, choice) in enumerate(zip(cells, architecture.choices, strict=True))
    ]
    return Architecture(architecture.space, tuple(choices))


def crossover(a: Architecture, b: Architecture, source: random.Random) -> Architecture:
    """Take each choice from one of two parents."""
    pairs = zip(a.choices, b.choices, strict=True)
    return Architecture(a.space, tuple(source.choice(pair) for pair in pairs))


@dataclass(frozen=True)
class Evolution:
    """Evolution of the most accurate architecture within a budget.

    Attributes
    ----------
    population, generations : int
    parents : int
        Survivors per generation.
    mutation_rate : float
    edp_budget : float
        Architectures above it (1e-6 J s) rank behind all others, by EDP.
    """

    population: int = 24
    generations: int = 6
    parents: int = 8
    mutation_rate: float = 0.15
    edp_budget: float = float("inf")

    def __post_init__(self) -> None:
        if not 2 <= self.parents <= self.population or self.generations < 1:
            raise ValueError(
                f"population={self.population}, parents={self.parents}, generations="
                f"{self.generations}: need 2 <= parents <= population and at least one generation"
            )

    def run(
        self, evaluator: Evaluator, *, seed: int = 0, progress: Progress | None = None
    ) -> SearchResult:
        """Search."""
        source, space = random.Random(seed), evaluator.supernet.space
        pool = [evaluator(Architecture.random(space, source)) for _ in range(self.population)]
        history = History()
        for generation in range(self.generations):
            pool = sorted({p.architecture.choices: p for p in pool}.values(), key=self._rank)
            parents = pool[: self.parents]
            row = {
                "epoch": generation,
                "accuracy": parents[0].accuracy,
                "edp": parents[0].edp,
                "evaluated": len(evaluator.seen),
            }
            history.rows.append(row)
            if progress:
                progress(row)
            if generation == self.generations - 1:
                break
            children: list[Evaluated] = []
            while len(children) < self.population - self.parents:
                if source.random() < 0.5:
                    one, two = source.sample(parents, 2)
                    child = crossover(one.architecture, two.architecture, source)
                else:
                    child = source.choice(parents).architecture
                children.append(evaluator(mutate(child, self.mutation_rate, source)))
            pool = [*parents, *children]
        best = min(evaluator.seen.values(), key=self._rank)
        return SearchResult("evolution", best.architecture, history, tuple(evaluator.seen.values()))

    def _rank(self, point: Evaluated) -> tuple[bool, float, float]:
        over = point.edp > self.edp_budget
        return (over, point.edp if over else -point.accuracy, point.edp)


@dataclass(frozen=True)
class NSGA2:
    """The Pareto front of accuracy and EDP with pymoo's NSGA-II (``pip install pymoo``).

    Attributes
    ----------
    population, generations : int
    """

    population: int = 24
    generations: int = 6

    def run(
        self, evaluator: Evaluator, *, seed: int = 0, progress: Progress | None = None
    ) -> SearchResult:
        """Search; the result's architecture is the front's most accurate one."""
        try:
            from pymoo.algorithms.moo import nsga2
            from pymoo.core.problem import ElementwiseProblem
            from pymoo.operators.crossover.ux import UniformCrossover
            from pymoo.operators.mutation.pm import PM
            from pymoo.operators.repair.rounding import RoundingRepair
            from pymoo.operators.sampling.rnd import IntegerRandomSampling
            from pymoo.optimize import minimize
        except ImportError:
            raise ValueError("strategy='nsga2' needs pymoo: pip install nasa[search]") from None
        space = evaluator.supernet.space
        history = History()

        class Problem(ElementwiseProblem):
            def __init__(self) -> None:
                upper = [len(cell.candidates) - 1 for cell in space.cells]
                super().__init__(n_var=len(upper), n_obj=2, xl=0, xu=upper, vtype=int)

            def _evaluate(
                self, x: object, out: dict[str, object], *_: object, **__: object
            ) -> None:
                point = evaluator(Architecture(space, tuple(x)))  # type: ignore[arg-type]
                out["F"] = [1 - point.accuracy, min(point.edp, 1e9)]

        def note(algorithm: object) -> None:
            points = tuple(evaluator.seen.values())
            best = max(points, key=lambda p: (p.accuracy, -p.edp))
            row = {
                "epoch": len(history.rows),
                "accuracy": best.accuracy,
                "edp": best.edp,
                "evaluated": len(points),
            }
            history.rows.append(row)
            if progress:
                progress(row)

        algorithm = nsga2.NSGA2(
            pop_size=self.population,
            sampling=IntegerRandomSampling(),
            crossover=UniformCrossover(),
            mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
            eliminate_duplicates=True,
        )
        minimize(Problem(), algorithm, ("n_gen", self.generations), seed=seed, callback=note)
        points = tuple(evaluator.seen.values())
        best = max(pareto_front(points), key=lambda p: p.accuracy)
        return SearchResult("nsga2", best.architecture, history, points)


def random_search(evaluator: Evaluator, count: int, *, seed: int = 0) -> SearchResult:
    """Evaluate random architectures: the baseline of every search."""
    source, space = random.Random(seed), evaluator.supernet.space
    points = [evaluator(Architecture.random(space, source)) for _ in range(count)]
    best = max(points, key=lambda p: (p.accuracy, -p.edp))
    return SearchResult("random", best.architecture, History(), tuple(points))
