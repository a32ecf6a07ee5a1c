"""What the commands do: reads files, runs the library, writes files."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from nasa import figures
from nasa._files import write_text
from nasa.arch import Architecture
from nasa.data import load
from nasa.hw import Accelerator, InfeasibleMappingError, MappingResult, Workload, search_allocation
from nasa.hw import map as map_workload
from nasa.hw.dataflows import DATAFLOWS
from nasa.hw.layer import OPERATOR_TYPES
from nasa.hw.tables import Objective
from nasa.pretraining import ProgressivePretraining
from nasa.quantization import Bits, export_packed
from nasa.quantization import quantize as quantize_network
from nasa.report import Section, write_report
from nasa.search import DNAS, NSGA2, CostTable, Evaluated, Evaluator, Evolution, SearchResult
from nasa.search.result import pareto_front
from nasa.space import SearchSpace
from nasa.supernet import Supernet
from nasa.training import (
    History,
    Recipe,
    evaluate,
    load_checkpoint,
    recalibrate_batch_norm,
    save_checkpoint,
    train_from_scratch,
)

Progress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class SearchSettings:
    """What ``nasa search`` was asked for; kept in the run's folder as settings.json."""

    space: str
    data: str
    strategy: str
    accelerator: str
    metric: Any
    budget_edp: float
    pretraining: str
    pretraining_epochs: int
    epochs: int
    batch_size: int
    learning_rate: float
    size: int | None
    seed: int

    @classmethod
    def load(cls, run: Path) -> SearchSettings:
        """Read the settings of a run."""
        path = run / "settings.json"
        if not path.is_file():
            raise ValueError(
                f"run={str(run)!r}: there is no settings.json; give a folder of nasa search"
            )
        data = json.loads(path.read_text())
        if set(data) != {f.name for f in fields(cls)}:
            raise ValueError(f"run={str(run)!r}: settings.json was written by another version")
        return cls(**data)


def search(out: Path, settings: SearchSettings, progress: Progress) -> SearchResult:
    """Pretrain, search, write arch.json, search.json, mapping.json and the report."""
    space = SearchSpace.from_yaml(settings.space)
    accelerator = Accelerator.from_yaml(settings.accelerator)
    train_set, _ = load(settings.data, settings.seed, settings.size)
    if tuple(train_set.images.shape[1:]) != space.image:
        raise ValueError(
            f"data={settings.data!r} has images of {tuple(train_set.images.shape[1:])}, the space "
            f"{space.name!r} expects {space.image}: use another space, or a copy with that image"
        )
    if train_set.classes > space.classes:
        raise ValueError(
            f"data={settings.data!r} has {train_set.classes} classes, the space {space.classes}"
        )
    previous = out / "settings.json"
    if previous.exists() and SearchSettings.load(out) != settings:
        raise ValueError(
            f"out={str(out)!r} holds a search with other settings: continue it with "
            f"`nasa resume {out}`, or use another folder"
        )
    write_text(previous, json.dumps(asdict(settings), indent=1) + "\n")
    recipe = Recipe(
        epochs=settings.epochs, batch_size=settings.batch_size, learning_rate=settings.learning_rate
    )
    build = getattr(ProgressivePretraining, settings.pretraining)
    schedule = build(space, settings.pretraining_epochs, recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        supernet = Supernet(space, zero_last_gamma=settings.pretraining == "progressive")
    history = schedule.run(
        supernet,
        train_set,
        seed=settings.seed,
        checkpoint=out / "pretraining.pt",
        progress=progress,
    )
    if settings.strategy == "dnas":
        costs = CostTable.build(space, accelerator, settings.metric)
        result = DNAS(recipe).run(
            supernet,
            train_set,
            costs,
            seed=settings.seed,
            checkpoint=out / "search.pt",
            progress=progress,
        )
    else:
        first, second = train_set.split(0.8, settings.seed)
        evaluator = Evaluator(supernet, first, second, accelerator, seed=settings.seed)
        if settings.strategy == "nsga2":
            result = NSGA2(generations=settings.epochs).run(
                evaluator, seed=settings.seed, progress=progress
            )
        else:
            strategy = Evolution(generations=settings.epochs, edp_budget=settings.budget_edp)
            result = strategy.run(evaluator, seed=settings.seed, progress=progress)
    write_text(out / "pretraining.json", json.dumps(history.rows, indent=1) + "\n")
    result.architecture.save(out / "arch.json")
    result.save(out / "search.json")
    write_search_report(out)
    return result


def write_search_report(run: Path) -> Path:
    """Write report.html of a search from its saved results."""
    path = run / "search.json"
    if not path.is_file():
        raise ValueError(f"run={str(run)!r}: there is no search.json; finish it with nasa resume")
    data = json.loads(path.read_text())
    architecture = Architecture.from_json(data["architecture"])
    history = History(json.loads((run / "pretraining.json").read_text()))
    settings = SearchSettings.load(run)
    points = [
        Evaluated(Architecture(architecture.space, tuple(e["choices"])), e["accuracy"], e["edp"])
        for e in data["evaluated"]
    ]
    figures.save(figures.loss_curves({settings.pretraining: history}), run / "pretraining.png")
    figures.save(figures.type_strip({"found": architecture}), run / "types.png")
    sections = [
        Section("Architecture", str(architecture), figures=["types.png"]),
        Section("Pretraining", figures=["pretraining.png"]),
    ]
    if points:
        front = pareto_front(points)
        figures.save(figures.pareto(points, front), run / "pareto.png")
        rows = [[f"{p.edp:.5g}", f"{100 * p.accuracy:.1f} %", str(p.architecture)] for p in front]
        columns = ["EDP, 1e-6 J s", "accuracy with shared weights", "architecture"]
        sections.insert(1, Section("Pareto front", "", columns, rows, ["pareto.png"]))
    state = load_checkpoint(run / "pretraining.pt", "pretraining", {})
    if state:
        supernet = Supernet(architecture.space)
        supernet.load_state_dict(state["model"])
        figures.save(figures.weight_histograms(supernet), run / "weights.png")
        sections.append(Section("Weights by operator type", figures=["weights.png"]))
    try:
        mapping = map_workload(architecture.workload(), Accelerator.from_yaml(settings.accelerator))
        mapping.save(str(run / "mapping.json"))
        sections.insert(1, mapping_section(mapping, run))
    except InfeasibleMappingError as error:
        sections.insert(1, Section("Mapping", f"The accelerator cannot run it: {error}"))
    lead = (
        f"Strategy {data['strategy']} in the space {architecture.space.name}, seed {settings.seed}."
    )
    write_report(run / "report.html", "Search", lead, sections)
    return run / "report.html"


def mapping_section(result: MappingResult, folder: Path) -> Section:
    """Draw a mapping and return its section."""
    figures.save(figures.energy_stacks({result.workload: result}), folder / "energy.png")
    figures.save(figures.chunk_gantt({result.workload: result}), folder / "gantt.png")
    columns = ["layer", "operator", "dataflow", "MAC", "energy, uJ", "latency, ms"]
    rows = [
        [m.layer.name, m.layer.operator, m.dataflow, m.layer.macs, f"{1e3 * m.energy_mj:.3f}",
         f"{m.latency_ms:.5f}"]
        for m in result.layers
    ]  # fmt: skip
    return Section("Mapping", repr(result), columns, rows, ["energy.png", "gantt.png"])


def train(
    architecture: Path,
    out: Path,
    data: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    size: int | None,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Train from scratch; write network.pt, training.json and the page training.html."""
    found = Architecture.load(architecture)
    train_set, test_set = load(data, seed, size)
    if tuple(train_set.images.shape[1:]) != found.space.image:
        raise ValueError(
            f"data={data!r} has images of {tuple(train_set.images.shape[1:])}, the architecture "
            f"expects {found.space.image}"
        )
    recipe = Recipe(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
    net, history = train_from_scratch(
        found,
        train_set,
        test_set,
        recipe,
        seed=seed,
        checkpoint=out / "training.pt",
        progress=progress,
    )
    state = {"kind": "network", "identity": {}, "model": net.state_dict()}
    save_checkpoint(out / "network.pt", state)
    found.save(out / "arch.json")
    write_text(out / "training.json", json.dumps(history.rows, indent=1) + "\n")
    last = history.rows[-1]
    curve = figures.loss_curves({"training": history}, "cross entropy")
    figures.save(curve, out / "training.png")
    figures.save(figures.type_strip({"network": found}), out / "network.png")
    rows: list[list[Any]] = [
        ["test accuracy", f"{100 * last['test_accuracy']:.2f} %"],
        ["test cross entropy", f"{last['test_loss']:.4f}"],
        ["parameters", sum(p.numel() for p in net.parameters())],
        ["images, training and test", f"{len(train_set)}, {len(test_set)}"],
    ]
    section = Section(
        "Training", str(found), ["figure", "value"], rows, ["training.png", "network.png"]
    )
    lead = f"{epochs} epochs on {Path(data).name}, learning rate {learning_rate:g}, seed {seed}."
    write_report(out / "training.html", "Training", lead, [section])
    return last


def quantize(
    run: Path, data: str, widths: tuple[int, int, int], size: int | None
) -> dict[str, float]:
    """Quantise network.pt; write network.packed.safetensors."""
    found = Architecture.load(run / "arch.json")
    state = load_checkpoint(run / "network.pt", "network", {})
    if state is None:
        raise ValueError(f"run={str(run)!r}: there is no network.pt; run nasa train --out {run}")
    net = found.build()
    try:
        net.load_state_dict(state["model"])
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"network.pt does not fit arch.json in {str(run)!r}: {first}") from None
    bits = Bits(*widths)
    train_set, test_set = load(data, 0, size)
    recalibrate_batch_norm(net, [x for x, _ in train_set.batches(256, 0)])
    batches = [x for x, _ in train_set.batches(256)]
    integer = quantize_network(net, batches, bits)
    before, _ = evaluate(net, test_set)
    after, _ = evaluate(integer, test_set)
    sizes = export_packed(net, run / "network.packed.safetensors", bits)
    return {"accuracy": before, "quantized_accuracy": after, **sizes}


def read_workload(path: Path) -> Workload:
    """Read an architecture or a workload file."""
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"workload={str(path)!r}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"workload={str(path)!r} is no JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"workload={str(path)!r}: an architecture or a workload is needed")
    try:
        return (
            Workload.from_json(data)
            if "layers" in data
            else Architecture.from_json(data).workload()
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"workload={str(path)!r} lacks or garbles {error}") from None


def map_file(
    workload: Path, accelerator: str, objective: Objective, top: int, out: Path | None
) -> list[MappingResult]:
    """Map a file; return the best combinations, the best first."""
    if top < 1:
        raise ValueError(f"top={top}: must be at least 1")
    work, machine = read_workload(workload), Accelerator.from_yaml(accelerator)
    best = map_workload(work, machine, objective)
    results = [best]
    if top > 1:
        present = list(best.dataflows)
        for flows in itertools.product(DATAFLOWS, repeat=len(present)):
            fixed = dict(zip(present, flows, strict=True))
            if fixed == best.dataflows:
                continue
            try:
                results.append(map_workload(work, machine, objective, dataflows=fixed))
            except InfeasibleMappingError:
                continue
        value = {"edp": "edp", "energy": "energy_mj", "latency": "interval_ms"}[objective]
        results.sort(key=lambda r: float(getattr(r, value)))
    if out is not None:
        section = mapping_section(best, out)
        best.save(str(out / "mapping.json"))
        write_report(out / "report.html", "Mapping", f"{work.name} on {machine.name}", [section])
    return results[:top]


def allocate(workload: Path, accelerator: str, area: float | None, budget: int) -> dict[str, Any]:
    """Search the PE split of a file."""
    work, machine = read_workload(workload), Accelerator.from_yaml(accelerator)
    if area is not None:
        machine = replace(machine, area=area)
    found = search_allocation(work, machine, budget=budget)
    row: dict[str, Any] = {
        f"{t} PEs": found.best.processing_elements.get(t, 0) for t in OPERATOR_TYPES
    }
    row["EDP, 1e-6 J s"] = found.best.edp
    if found.proportional:
        row["EDP of Eq. 8, 1e-6 J s"] = found.proportional.edp
        row["saving"] = found.saving
    row["buffer"] = "shared" if found.buffer_split is None else str(found.buffer_split)
    row["mappings tried"] = found.tried
    return row


def build_table(space: str, accelerator: str, out: Path) -> int:
    """Write the candidates' costs."""
    found, machine = SearchSpace.from_yaml(space), Accelerator.from_yaml(accelerator)
    table = CostTable.build(found, machine)
    cells = [
        {
            str(candidate): {"energy_mj": float(e), "latency_ms": latency.tolist()}
            for candidate, e, latency in zip(cell.candidates, energy, latencies, strict=True)
        }
        for cell, energy, latencies in zip(found.cells, table.energy, table.latency, strict=True)
    ]
    data = {
        "schema_version": 1,
        "space": found.to_json(),
        "accelerator": machine.to_json(),
        "processing_elements": table.processing_elements,
        "chunks": list(OPERATOR_TYPES),
        "cells": cells,
    }
    write_text(out, json.dumps(data, indent=1) + "\n")
    return sum(len(cell) for cell in cells)
