"""The command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from vitcod.errors import InputError
from vitcod.files import write_atomically
from vitcod.plan import SparsityPlan
from vitcod.polarize import Order
from vitcod.pruning import Method, Scope

_EXAMPLES = """Examples:

  vitcod import-mask info_0.95.npy -o plan.safetensors

  vitcod collect --model deit_tiny --checkpoint w.pth --data images.npz -o stats.safetensors

  vitcod prune stats.safetensors --sparsity 0.9 -o plan.safetensors --report prune.html

  vitcod inspect plan.safetensors --layer 2 --head 0

  vitcod finetune --plan plan.safetensors --model deit_tiny --checkpoint w.pth --data images.npz
  -o tuned.safetensors --epochs 3

  vitcod eval --plan plan.safetensors --model deit_tiny --checkpoint w.pth --data images.npz

  vitcod bench kernel --plan plan.safetensors

  vitcod simulate --plan plan.safetensors --compat official --report simulate.html

  vitcod demo --out demo

Exit codes: 0 success, 2 bad input, 3 fixed masks are unsuited to the model (diagnose), 130 Ctrl-C.
"""

app = App(
    name="vitcod",
    help="Fixed sparse attention for vision transformers, and an accelerator simulator.",
    help_epilogue=_EXAMPLES,
    help_format="plaintext",
    version=version("vitcod"),
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
)
bench = App(name="bench", help="Measure on this machine.")
app.command(bench)
Output = Annotated[Path, Parameter(name=["--output", "-o"])]
ModelName = Literal["deit_tiny", "deit_small", "deit_base", "timm"]
_UNSUITED = 3


@contextmanager
def _progress(label: str, total: int) -> Iterator[Progress]:
    """Show a bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        progress.add_task(label, total=total)
        yield progress


def _data(path: Path) -> tuple[Any, Any]:
    """Images (count, channels, height, width) and labels from an .npz."""
    import torch

    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"data={str(path)!r} cannot be read ({error}): an .npz with images"
            " (count, channels, height, width) and labels (count)"
        ) from error
    if images.ndim != 4 or len(images) != len(labels) or not len(images):
        raise InputError(
            f"data={str(path)!r} has images {images.shape} and labels {labels.shape}:"
            " (count, channels, height, width) and (count)"
        )
    x = torch.from_numpy(np.ascontiguousarray(images, np.float32))
    return x, torch.from_numpy(np.asarray(labels, np.int64))


def _model(name: str, checkpoint: Path | None, image: int, classes: int, timm_name: str) -> Any:
    """Build a model and load its weights (safetensors, or a torch file read with weights only)."""
    import torch

    from vitcod.models import PRESETS, VisionTransformer

    if name == "timm":
        if find_spec("timm") is None:
            raise InputError("model='timm' needs timm: pip install 'vitcod[timm]'")
        import timm

        try:
            model = timm.create_model(
                timm_name, pretrained=False, num_classes=classes, img_size=image
            )
        except (RuntimeError, TypeError) as error:
            raise InputError(f"timm-name={timm_name!r} is not allowed: {error}") from error
    else:
        model = VisionTransformer(image=image, classes=classes, **PRESETS[name])
    if checkpoint is not None:
        try:
            if checkpoint.suffix == ".safetensors":
                from safetensors.torch import load_file

                state = load_file(checkpoint)
            else:
                state = torch.load(checkpoint, map_location="cpu", weights_only=True)
            weights: Any = state.get("model", state)
            model.load_state_dict(weights)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"checkpoint={str(checkpoint)!r} does not fit {name} ({reason}): weights of this"
                " architecture, as .safetensors or a torch file of tensors"
            ) from error
    return model.eval()


def _write_report(path: Path | None, *arguments: Any) -> None:
    if path is not None:
        from vitcod.report import page

        write_atomically(path, page(*arguments).encode())


@app.command(name="import-mask")
def import_command(
    mask: Path, /, *, output: Output, special_tokens: int = 1, dense_threshold: float = 0.25
) -> int:
    """Turn a published .npy mask (True = pruned) into a polarized plan.

    Parameters
    ----------
    mask
        Boolean array (layers, heads, queries, keys).
    output
        Plan to write.
    special_tokens
        Tokens before the patches.
    dense_threshold
        Share (or count) of kept entries above which a token is global.
    """
    from vitcod.masks import import_mask
    from vitcod.polarize import polarize

    plan = polarize(import_mask(mask, special_tokens), dense_threshold)
    plan.save(output)
    print(plan)
    return 0


@app.command
def collect(
    *,
    data: Path,
    output: Output,
    model: ModelName = "deit_tiny",
    checkpoint: Path | None = None,
    timm_name: str = "deit_tiny_patch16_224",
    classes: int = 1000,
    max_images: int = 10_000,
    batch: int = 32,
    output_scores: bool = False,
) -> int:
    """Average the attention maps of a model over clean images, and diagnose them.

    Parameters
    ----------
    data
        An .npz with images and labels, normalised as the model wants them.
    output
        Statistics to write.
    model
        Architecture.
    checkpoint
        Its weights.
    timm_name
        Name in timm, with --model timm.
    classes
        Outputs of the model.
    max_images
        Average so many.
    batch
        Images at a time.
    output_scores
        Also collect what prune --method output needs.
    """
    from vitcod.diagnose import diagnose
    from vitcod.stats import collect_attention

    x, _ = _data(data)
    network = _model(model, checkpoint, x.shape[-1], classes, timm_name)
    stats = collect_attention(network, x.split(batch), max_images, output_scores)
    stats.save(output)
    print(f"{stats.images} images, {len(stats.maps)} layers; {diagnose(stats)}")
    return 0


@app.command(name="diagnose")
def diagnose_command(stats: Path, /, *, sparsity: float = 0.9) -> int:
    """Say whether fixed masks suit a model; exit code 3 if not.

    Parameters
    ----------
    stats
        Statistics from collect.
    sparsity
        Target, 0 to 1.
    """
    from vitcod.diagnose import diagnose
    from vitcod.stats import AttentionStats

    verdict = diagnose(AttentionStats.load(stats), sparsity)
    print(verdict)
    return 0 if verdict.suited else _UNSUITED


@app.command(name="prune")
def prune_command(
    stats: Path,
    /,
    *,
    output: Output,
    sparsity: float | None = None,
    theta: float | None = None,
    method: Method = "info",
    scope: Scope = "global",
    tile_rows: int | None = None,
    official: bool = False,
    dense_threshold: float = 0.25,
    order: Order = "zorder",
    seed: int = 0,
    report: Path | None = None,
) -> int:
    """Choose the kept keys and polarize them.

    Parameters
    ----------
    stats
        Statistics from collect.
    output
        Plan to write.
    sparsity
        Share of scores to drop.
    theta
        Threshold instead of a sparsity.
    method
        Information pruning, or another criterion or control.
    scope
        One threshold for the model or one per layer.
    tile_rows
        Rows that share one choice of keys.
    official
        One key more per row, as the authors' script keeps; with --theta.
    dense_threshold
        Share of kept entries above which a token is global.
    order
        Order of the rows.
    seed
        Of random masks.
    report
        HTML page to write.
    """
    from vitcod.diagnose import diagnose, retained_mass
    from vitcod.polarize import polarize
    from vitcod.pruning import prune
    from vitcod.stats import AttentionStats

    found = AttentionStats.load(stats)
    plan = prune(found, sparsity, method, scope, ("cls",), tile_rows, theta, official, seed)
    plan = polarize(plan, dense_threshold, order)
    plan.save(output)
    print(plan)
    print(f"attention kept: {100 * retained_mass(found, plan):.1f} %")
    print(diagnose(found, min(max(plan.sparsity, 0.05), 0.95)))
    if report is not None:
        from vitcod.report import density_figure, maps_figure

        heads = [(i, 0) for i in range(min(4, len(plan)))]
        figures = [
            ("Averaged attention, kept keys, polarized", maps_figure(found, plan, heads)),
            ("Kept share of every head", density_figure(plan)),
        ]
        _write_report(report, "sparsity plan", str(plan), [], figures)
    return 0


@app.command
def inspect(
    plan: Path,
    /,
    *,
    layer: int = 0,
    head: int = 0,
    polarized: bool = False,
    report: Path | None = None,
) -> int:
    """Print a plan and draw one of its masks.

    Parameters
    ----------
    plan
        Plan file.
    layer
        Layer to draw.
    head
        Head to draw.
    polarized
        Draw it in polarized order.
    report
        HTML page to write.
    """
    found = SparsityPlan.load(plan)
    drawing = found.layer(layer).to_text(head, polarized=polarized)
    print(found)
    print(f"checksum {found.checksum()}\nlayer {layer}, head {head}:\n{drawing}")
    if report is not None:
        from vitcod.report import density_figure, masks_figure

        heads = [(layer, h) for h in range(min(4, found.layer(layer).heads))]
        figures = [("Kept share of every head", density_figure(found))]
        if found.layer(layer).permutation is not None:
            figures.insert(0, ("Masks, and polarized masks", masks_figure(found, heads)))
        _write_report(report, "sparsity plan", str(found), [], figures)
    return 0


@app.command(name="finetune")
def finetune_command(
    *,
    plan: Path,
    data: Path,
    output: Output,
    model: ModelName = "deit_tiny",
    checkpoint: Path | None = None,
    timm_name: str = "deit_tiny_patch16_224",
    classes: int = 1000,
    epochs: float = 3,
    learning_rate: float = 1e-4,
    distillation: float = 0.0,
    seed: int = 0,
) -> int:
    """Fine-tune a model with its masks; write its weights as safetensors.

    Parameters
    ----------
    plan
        Plan file.
    data
        An .npz with images and labels.
    output
        Weights to write.
    model
        Architecture.
    checkpoint
        Weights to start from.
    timm_name
        Name in timm, with --model timm.
    classes
        Outputs of the model.
    epochs
        Passes over the data.
    learning_rate
        Peak.
    distillation
        Weight of the dense model's predictions, 0 to 1.
    seed
        Of the order of the images.
    """
    import copy

    from safetensors.torch import save

    from vitcod.finetune import Recipe, accuracy, finetune
    from vitcod.patching import patch

    x, y = _data(data)
    network = _model(model, checkpoint, x.shape[-1], classes, timm_name)
    teacher = copy.deepcopy(network) if distillation else None
    patch(network, SparsityPlan.load(plan))
    settings = replace(Recipe.cpu(epochs, learning_rate), distillation=distillation)
    with _progress("steps", 1) as progress:
        losses = finetune(
            network,
            x,
            y,
            settings,
            teacher,
            seed,
            on_step=lambda i, n, _: progress.update(progress.task_ids[0], completed=i, total=n),
        )
    state = {name: t.contiguous() for name, t in network.state_dict().items()}
    write_atomically(output, save(state))
    print(f"{len(losses)} steps, loss {losses[0]:.3f} to {losses[-1]:.3f}")
    print(f"accuracy on this data {100 * accuracy(network, x, y):.2f} %")
    return 0


@app.command(name="eval")
def eval_command(
    *,
    data: Path,
    plan: Path | None = None,
    model: ModelName = "deit_tiny",
    checkpoint: Path | None = None,
    timm_name: str = "deit_tiny_patch16_224",
    classes: int = 1000,
) -> int:
    """Measure top-1 accuracy, dense and with a plan.

    Parameters
    ----------
    data
        An .npz with images and labels.
    plan
        Plan file.
    model
        Architecture.
    checkpoint
        Its weights.
    timm_name
        Name in timm, with --model timm.
    classes
        Outputs of the model.
    """
    from vitcod.finetune import accuracy
    from vitcod.patching import patch

    x, y = _data(data)
    network = _model(model, checkpoint, x.shape[-1], classes, timm_name)
    print(f"dense: {100 * accuracy(network, x, y):.2f} %")
    if plan is not None:
        patch(network, SparsityPlan.load(plan))
        print(f"plan:  {100 * accuracy(network, x, y):.2f} %")
    return 0


@bench.command
def kernel(*, plan: Path | None = None, batch: int = 1, repeats: int = 30) -> int:
    """Time sparse attention against dense SDPA, per layer of a plan or on ViT-like masks.

    Parameters
    ----------
    plan
        Plan file; without one, synthetic masks of 197 tokens.
    batch
        Images at a time.
    repeats
        Interleaved runs.
    """
    from vitcod.native import instruction_set
    from vitcod.speed import compare_with_dense
    from vitcod.synthetic import vit_like_plan

    if batch < 1 or repeats < 1:
        raise InputError(f"batch={batch}, repeats={repeats} is not allowed: at least 1")
    if plan is None:
        layers = [
            (f"{100 * s:.0f} %", vit_like_plan(1, 12, 197, s).layer(0))
            for s in (0.5, 0.7, 0.8, 0.9, 0.95)
        ]
    else:
        layers = [(f"layer {i}", p) for i, p in enumerate(SparsityPlan.load(plan))]
    print(f"kernels: {instruction_set()}")
    for name, layer in layers:
        dense, sparse = compare_with_dense(layer, batch, repeats=repeats)
        print(
            f"{name:>9}: dense {dense.median:8.3f} ms, sparse {sparse.median:8.3f} ms,"
            f" {dense.median / sparse.median:5.2f}x"
        )
    return 0


@bench.command(name="calibrate")
def calibrate_command() -> int:
    """Measure the cost model's figures on this machine."""
    from vitcod.layout import calibrate

    print(calibrate())
    return 0


@app.command(name="simulate")
def simulate_command(
    *,
    plan: Path,
    head_dim: int = 64,
    ae_ratio: float = 1.0,
    compat: Literal["official"] | None = None,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
    report: Path | None = None,
) -> int:
    """Count the cycles of a plan on the accelerator and its baselines.

    Parameters
    ----------
    plan
        Plan file.
    head_dim
        Channels of a head.
    ae_ratio
        H'/H of the auto-encoder; 1 has none.
    compat
        Also print the authors' own counts.
    json_output
        Print JSON.
    report
        HTML page to write.
    """
    from vitcod.sim import BASELINES, simulate

    found = SparsityPlan.load(plan)
    result = simulate(
        found, baselines=BASELINES, head_dim=head_dim, ae_ratio=ae_ratio, compat=compat
    )
    print(json.dumps(result.to_json(), indent=1) if json_output else result)
    if report is not None:
        from vitcod.report import cycles_figure, density_figure, roofline_figure

        figures = [
            ("Attention alone and end to end", cycles_figure(result)),
            ("Roofline", roofline_figure(result, [found.layer(0).keys])),
            ("Kept share of every head", density_figure(found)),
        ]
        table = {
            "title": "Layers",
            "columns": ["layer", "cycles", "SDDMM", "SpMM", "softmax", "decode", "memory", "bytes"],
            "rows": [
                [i, x.total, x.sddmm, x.spmm, x.softmax, x.coder, x.memory, x.traffic]
                for i, x in enumerate(result.layers)
            ],
        }
        _write_report(report, "simulation", str(result), [table], figures)
    return 0


@app.command(name="demo")
def demo_command(*, out: Path, seed: int = 0) -> int:
    """Train a small ViT on digits; prune, polarize, time and simulate it.

    Example: vitcod demo --out demo

    Parameters
    ----------
    out
        Folder for result.json, report.html and the figures; created.
    seed
        Of weights, data split and order.
    """
    if find_spec("sklearn") is None:
        raise InputError("module='sklearn' is missing: pip install 'vitcod[demo]'")
    from vitcod.demo import run_demo

    with _progress("training", 416) as progress:
        task = progress.task_ids[0]
        result = run_demo(out, seed, lambda i, n: progress.update(task, completed=i, total=n))
    for claim in result["claims"]:
        state = {True: "yes", False: "NO", None: "shown"}[claim["met"]]
        print(f"{state:>5}  {claim['name']}: {claim['measured']} {claim['unit']}".rstrip())
    print(f"{out / 'report.html'} ({result['seconds']:.0f} s)")
    return 0


def main(tokens: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    try:
        code = app(tokens, result_action="return_value")
    except CycloptsError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
