"""Systolic cycles against runs of SCALE-Sim, mapped costs and exports against runs of ZigZag.

Each peer runs in an interpreter of its own: SCALE-Sim 3.0 needs numpy below 2, ZigZag 3.9 six.
"""

import csv
import json
import random
import subprocess
import tempfile
import time
from pathlib import Path

from common import ROOT, arguments, goal, write
from nasa._files import write_text
from nasa.hw import Accelerator, Layer, Workload
from nasa.hw import map as map_workload
from nasa.hw.systolic import systolic_cycles
from nasa.interop import (
    rank_agreement,
    read_lookup_table,
    to_scalesim,
    to_scalesim_layout,
    to_zigzag,
)

SIZES = (1, 2, 3, 5, 7, 11, 13)
ARRAYS = ((4, 4), (5, 7), (8, 3))
SCALESIM_CONFIG = """[general]
run_name = run
[architecture_presets]
ArrayHeight = {rows}
ArrayWidth = {columns}
IfmapSramSzkB = 512
FilterSramSzkB = 512
OfmapSramSzkB = 256
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = {dataflow}
ReadRequestBuffer = 512
WriteRequestBuffer = 512
[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = false
SparseRep = ellpack_block
OptimizedMapping = false
BlockSize = 8
RandomNumberGeneratorSeed = 40
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
"""
ZIGZAG = """
import json, logging, sys
logging.disable(logging.CRITICAL)
from importlib.resources import files
from zigzag.api import get_hardware_performance_zigzag as run
inputs = str(files("zigzag") / "inputs")
costs = {}
for name in sys.argv[2:]:
    hardware, mapping = (f"{inputs}/{kind}/tpu_like.yaml" for kind in ("hardware", "mapping"))
    energy, latency, _ = run(name, hardware, mapping, opt="EDP",
        dump_folder=sys.argv[1] + "/out", lpf_limit=4, loma_show_progress_bar=False)
    costs[name.rsplit("/", 1)[-1].removesuffix(".yaml")] = {"energy": energy, "latency": latency}
json.dump(costs, open(sys.argv[1] + "/costs.json", "w"))
"""


def layers(count: int, seed: int) -> list[Layer]:
    """Draw small layers, prime sizes among them."""
    source, found = random.Random(seed), []
    while len(found) < count:
        kernel = source.choice((1, 2, 3, 5))
        side = (source.choice(SIZES) + kernel - 1, source.choice(SIZES) + kernel - 1)
        channels, filters = source.choice(SIZES), source.choice(SIZES)
        stride = source.choice((1, 2, 3))
        found.append(
            Layer.conv(
                f"layer{len(found)}", "conv", channels, filters, side, kernel, stride, padding=0
            )
        )
    return found


def scalesim(python: str, each: int, folder: Path) -> list[list]:
    """Run SCALE-Sim on each array and dataflow; return layers, its cycles and ours."""
    rows = []
    for at, array in enumerate(ARRAYS):
        drawn = layers(each, at)
        work = Workload("layers", drawn)
        (folder / "t.csv").write_text(to_scalesim(work))
        (folder / "l.csv").write_text(to_scalesim_layout(work))
        for dataflow in ("os", "ws", "is"):
            config = SCALESIM_CONFIG.format(rows=array[0], columns=array[1], dataflow=dataflow)
            (folder / "c.cfg").write_text(config)
            command = [python, "-m", "scalesim.scale", "-c", "c.cfg", "-t", "t.csv", "-l", "l.csv"]
            subprocess.run([*command, "-p", "out"], cwd=folder, check=True, capture_output=True)
            with (folder / "out" / "run" / "COMPUTE_REPORT.csv").open() as file:
                report = list(csv.reader(file))
            column = [c.strip() for c in report[0]].index("Total Cycles")
            for layer, line in zip(drawn, report[1:], strict=True):
                shape = [layer.channels, layer.filters, layer.height, layer.width]
                cycles = int(float(line[column])), systolic_cycles(layer, array, dataflow)
                rows.append([*shape, layer.kernel[0], layer.stride, *array, dataflow, *cycles])
    return rows


def zigzag(python: str, folder: Path) -> tuple[list[list], dict[str, float]]:
    """Run ZigZag on the exported layers; return both sides' costs and their rank agreement."""
    source, drawn = random.Random(0), []
    for i in range(20):
        kernel = source.choice((1, 3))
        channels, filters = source.choice((16, 32, 64)), source.choice((16, 32, 64))
        side = source.choice((4, 8, 16))
        drawn.append(Layer.conv(f"layer{i}", "conv", channels, filters, side, kernel))
    files = []
    for layer in drawn:
        files.append(folder / f"{layer.name}.yaml")
        files[-1].write_text(to_zigzag(Workload(layer.name, [layer])))
    (folder / "peer.py").write_text(ZIGZAG)
    command = [python, "peer.py", str(folder), *map(str, files)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    table = read_lookup_table(folder / "costs.json")
    machine = Accelerator.from_yaml("nasa_45nm")
    ours = {}
    for layer in drawn:
        result = map_workload(Workload(layer.name, [layer]), machine)
        ours[layer.name] = {"energy": result.energy_mj, "latency": result.interval_ms}
    kinds = ("energy", "latency")
    agreement = {kind: rank_agreement(table, ours, kind)["spearman"] for kind in kinds}
    rows = [
        [str(layer.one_group), table[n]["energy"], table[n]["latency"], *ours[n].values()]
        for layer in drawn
        for n in [layer.name]
    ]
    return rows, agreement


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--scalesim", required=True, help="python that has scalesim")
    parser.add_argument("--zigzag", required=True, help="python that has zigzag-dse and six")
    parser.add_argument("--each", type=int, default=40, help="layers per array")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        cycles = scalesim(options.scalesim, options.each, Path(name))
        peer_seconds = time.perf_counter() - start
        costs, agreement = zigzag(options.zigzag, Path(name))
    start = time.perf_counter()
    for at, array in enumerate(ARRAYS):
        for layer in layers(options.each, at):
            for dataflow in ("os", "ws", "is"):
                systolic_cycles(layer, array, dataflow)
    speed = peer_seconds / (time.perf_counter() - start)
    equal = sum(row[-1] == row[-2] for row in cycles)
    distinct = options.each * len(ARRAYS)
    shape = ["C", "M", "H", "W", "kernel", "stride", "rows", "columns", "dataflow"]
    text = [",".join([*shape, "cycles"]), *(",".join(map(str, row[:-1])) for row in cycles)]
    write_text(ROOT / "tests" / "data" / "scalesim_cycles.csv", "\n".join(text) + "\n")
    goals = [
        goal("cycles equal to SCALE-Sim's", "all of >= 100 layers",
             f"{equal} of {len(cycles)} ({distinct} layers, three dataflows)",
             equal == len(cycles) and distinct >= 100, "prime sizes, strides 1 to 3, three arrays"),
        goal("SCALE-Sim's time / the closed form's", ">= 1e4", f"{speed:.1e}", speed >= 1e4),
        *(
            goal(f"rank agreement with ZigZag (TPU-like), {kind}", ">= 0.9", f"{value:.3f}",
                 value >= 0.9, "Spearman over 20 layers; our accelerator is nasa_45nm")
            for kind, value in agreement.items()
        ),
    ]  # fmt: skip
    tables = [
        {
            "title": "ZigZag (pJ, cycles) and our mapper (mJ, ms)",
            "columns": ["layer", "ZigZag energy", "ZigZag latency", "energy", "latency"],
            "rows": costs,
        }
    ]
    write(options.out, __file__, "Peers", goals, tables)
    print(json.dumps(agreement))


if __name__ == "__main__":
    main()
