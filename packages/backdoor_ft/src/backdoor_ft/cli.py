"""The command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from torch import nn

from backdoor_ft.attacks import attack
from backdoor_ft.auto import repair
from backdoor_ft.bench import COLUMNS, Matrix, run_matrix, table_parquet
from backdoor_ft.ckpt import load_model, save_model
from backdoor_ft.data import LabeledData, load
from backdoor_ft.defenses import RepairResult, Scratch
from backdoor_ft.errors import DivergedError, InputError
from backdoor_ft.files import make_folder, write_atomically
from backdoor_ft.metrics import evaluate, score
from backdoor_ft.models import build
from backdoor_ft.poison import PoisonPlan
from backdoor_ft.report import figure_png, matrix_page, sequela_page
from backdoor_ft.schedules import dose, plot_schedule
from backdoor_ft.schedules import preset as named_preset
from backdoor_ft.sequela import AUDITS, sequela

_EXAMPLES = """Examples:

  backdoor-ft demo --out demo

  backdoor-ft attack badnets --data digits --model cnn --ratio 0.1 --out victim

  backdoor-ft repair victim --method superft --out fixed

  backdoor-ft repair --checkpoint m.safetensors --model mypkg.net:build --clean DIR --out fixed

  backdoor-ft eval victim fixed

  backdoor-ft sequela victim fixed --audit mia,reinject,retuning,qra

  backdoor-ft schedule --preset paper --plot lr.png

  backdoor-ft bench matrix.toml --out store

  backdoor-ft report store --html table.html

Exit codes: 0 success, 2 bad input, 3 the accuracy guard refused the repair, or training diverged,
4 the attack did not implant, 130 Ctrl-C.
"""

app = App(
    name="backdoor-ft",
    help="Clean a backdoored model by super-fine-tuning, prove it, and measure what remains.",
    help_epilogue=_EXAMPLES,
    help_format="plaintext",
    version=version("backdoor-ft"),
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
)


def _progress(words: str) -> Any:
    console = Console(stderr=True)
    return console.status(words) if console.is_terminal else nullcontext()


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def _read_run(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "run.json").read_text())
        if not isinstance(content, dict) or not {"data", "model"} <= set(content):
            raise InputError(f"run={str(folder)!r} has a run.json without data and model")
        return content
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"run={str(folder)!r} is no folder of 'backdoor-ft attack' or 'repair'"
        ) from error


def _network(spec: str, data: LabeledData, seed: int = 0) -> nn.Module:
    channels = data.inputs.shape[1] if data.inputs.ndim == 4 else 1
    return build(spec, channels, data.num_classes, data.inputs.shape[-1], seed)


def _load_run(folder: Path) -> tuple[nn.Module, LabeledData, LabeledData, dict[str, Any]]:
    run = _read_run(folder)
    train = load(run["data"], "train", run.get("limit"))
    test = load(run["data"], "test", run.get("limit"))
    model = load_model(_network(run["model"], train), folder / "model.safetensors")
    return model, train, test, run


def _save_run(
    folder: Path, model: nn.Module, run: dict[str, Any], log: list[dict[str, float]]
) -> None:
    make_folder(folder)
    save_model(model, folder / "model.safetensors")
    lines = "".join(json.dumps(row) + "\n" for row in log)
    write_atomically(folder / "metrics.jsonl", lines.encode())
    rates = "step,lr\n" + "".join(f"{int(r['step'])},{r['lr']:.8g}\n" for r in log)
    write_atomically(folder / "lr.csv", rates.encode())
    _write_json(folder / "run.json", {"schema_version": 1, **run})


def _versions() -> dict[str, str]:
    return {"backdoor-ft": version("backdoor-ft"), "torch": torch.__version__}


@app.command(name="demo")
def demo_command(*, out: Path, seed: int = 0) -> int:
    """Attack and repair a digit classifier, with audits, figures and a report.

    Example: backdoor-ft demo --out demo

    Parameters
    ----------
    out
        Folder for result.json, report.html and the figures; created.
    seed
        Of data split, attacks and repairs.
    """
    from backdoor_ft.demo import run_demo

    with _progress("attacking and repairing") as status:
        told: Callable[[str], None] = (
            (lambda _: None) if status is None else (lambda words: status.update(words))
        )
        result = run_demo(out, seed, told)
    for claim in result["claims"]:
        state = {True: "yes", False: "NO", None: "shown"}[claim["met"]]
        print(f"{state:>5}  {claim['name']}: {claim['measured']} {claim['unit']}".rstrip())
    print(f"{out / 'report.html'} ({result['seconds']:.0f} s)")
    return 0


@app.command(name="attack")
def attack_command(
    name: str,
    *,
    out: Path,
    data: str = "digits",
    model: str = "cnn",
    ratio: float | None = None,
    target: int = 0,
    recipe: str = "digits",
    gate: float = 0.9,
    limit: int | None = None,
    seed: int = 0,
) -> int:
    """Train a backdoored model and store it with its plan.

    Example: backdoor-ft attack badnets --data digits --model cnn --ratio 0.1 --out victim

    Parameters
    ----------
    name
        badnets, blended, sig, sig_clean_label, lf, ssba_like, wanet, bpp, ctrl, label_consistent,
        adaptive_blend, input_aware, rare_word.
    out
        Folder to write.
    data
        digits, toy-text, FILE.npz, FILE.zip, cifar10-jpeg:DIR, or a folder of CLASS/IMAGE.
    model
        cnn, cnn-gn, mlp, vit, resnet8, preactresnet18, text, timm:NAME, hf:NAME, module:factory.
    ratio
        Poisoned share of the training set; the attack's own default without it.
    target
        Class that the trigger stands for.
    recipe
        digits, cifar-small, cifar, text.
    gate
        Attack success below which the exit code is 4.
    limit
        Most images of each class, zip files only.
    seed
        Of weights, poisons and order.
    """
    train, test = load(data, "train", limit), load(data, "test", limit)
    with _progress(f"training {model} on {data}"):
        victim, plan = attack(
            name,
            lambda: _network(model, train, seed),
            train,
            target=target,
            ratio=ratio,
            recipe=recipe,
            seed=seed,
        )
    found = score(victim, test, plan)
    run = {
        "kind": "attack", "attack": name, "data": data, "model": model, "recipe": recipe,
        "limit": limit, "seed": seed, "digest": train.digest(), "versions": _versions(),
        "score": found.to_json(),
    }  # fmt: skip
    make_folder(out)
    plan.save(out)
    _save_run(out, victim, run, [])
    print(f"{out}: ACC {found.accuracy}, ASR {found.attack_success}")
    if found.attack_success.value < gate:
        print(
            f"gate={gate} was not reached: poison more, train longer, or augment less",
            file=sys.stderr,
        )
        return 4
    return 0


@app.command(name="repair")
def repair_command(
    victim: Path | None = None,
    *,
    out: Path,
    checkpoint: Path | None = None,
    model: str | None = None,
    clean: str | None = None,
    poisoned: str | None = None,
    method: str = "auto",
    max_acc_drop: float = 0.01,
    budget: str | None = None,
    screen: bool = True,
    limit: int | None = None,
    seed: int = 0,
    json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Repair a model; nothing about the attack is read.

    Example: backdoor-ft repair victim --method superft --out fixed

    Parameters
    ----------
    victim
        Folder of 'backdoor-ft attack'.
    out
        Folder to write.
    checkpoint
        Weights (.safetensors, or a torch file without code) in place of a folder.
    model
        Network of the checkpoint, as for 'attack'.
    clean
        Clean data, as for 'attack --data'; the victim's data set without it.
    poisoned
        The poisoned training set, as for 'attack --data', for abl, activation_clustering and
        spectral, which filter it; "plan" takes the victim folder's data set with its plan applied.
    method
        auto, superft, ft, ft_sam, fst, nad, fine_pruning, anp, clp, rnp, ibau, sau, nc, d3, pam,
        unlearn, head_only, bn_recalibration, scratch; abl, activation_clustering, spectral.
    max_acc_drop
        Accuracy on held-out clean data that may be lost; else exit code 3 and no files.
    budget
        Wall time for auto, such as 60s.
    screen
        Of auto: give a model in which no class stands out back as it is. Triggers that move pixels
        or differ from image to image are not seen: --no-screen repairs whatever it looks like.
    limit
        Most images of each class, zip files only.
    seed
        Of everything random.
    json
        Print one JSON document.
    """
    if (victim is None) == (checkpoint is None):
        raise InputError(f"victim={victim}, checkpoint={checkpoint}: name exactly one of them")
    if victim is not None:
        network, data, _, run = _load_run(victim)
        if clean is not None:
            data = load(clean, "train", limit)
        spec = run["model"]
    else:
        if model is None or clean is None or checkpoint is None:
            raise InputError(f"model={model}, clean={clean}: both are needed with --checkpoint")
        data, spec = load(clean, "train", limit), model
        network = load_model(_network(model, data), checkpoint)
        run = {"data": clean, "limit": limit}
    filtered = None
    if poisoned == "plan":
        if victim is None:
            raise InputError("poisoned='plan' is not allowed with --checkpoint: name the data")
        filtered = PoisonPlan.load(victim, load(run["data"], "train", run.get("limit"))).dataset
    elif poisoned is not None:
        filtered = load(poisoned, "train", limit)
    screening: dict[str, Any] = {"screen": screen} if method == "auto" else {}
    with _progress(f"repairing by {method}"):
        result = repair(
            network, data, method=method, max_acc_drop=max_acc_drop, budget=budget,
            poisoned=filtered, seed=seed, **screening,
        )  # fmt: skip
    content = result.to_json()
    if not result.accepted:
        print(result.notes[-1], file=sys.stderr)
        return 3
    stored = {
        "kind": "repair", "data": run["data"], "limit": run.get("limit"), "model": spec,
        "clean": clean or run["data"], "seed": seed, "versions": _versions(), "repair": content,
    }  # fmt: skip
    _save_run(out, result.model, stored, result.log)
    _print_repair(result, out, content if json else None)
    return 0


def _print_repair(result: RepairResult, out: Path, content: dict[str, Any] | None) -> None:
    if content is not None:
        print(json.dumps(content, indent=1))
        return
    print(
        f"{out}: {result.method}, dose {result.dose:.0f}, displacement {result.displacement:.2f},"
        f" {result.cpu_seconds:.1f} s of processor time"
    )
    for note in result.notes:
        print(f"  {note}")


@app.command(name="eval")
def eval_command(victim: Path, fixed: Path, *, json: bool = False) -> int:
    """Compare a victim and its repair on the victim's test set.

    Example: backdoor-ft eval victim fixed

    Parameters
    ----------
    victim
        Folder of 'backdoor-ft attack', with the plan.
    fixed
        Folder of 'backdoor-ft repair'.
    json
        Print one JSON document.
    """
    before, train, test, _ = _load_run(victim)
    after, *_ = _load_run(fixed)
    plan = PoisonPlan.load(victim, train)
    found = evaluate(before=before, after=after, test=test, plan=plan, clean=train)
    _write_json(fixed / "evaluation.json", found.to_json())
    print(_dump(found.to_json()) if json else found)
    return 0


def _dump(content: Any) -> str:
    return json.dumps(content, indent=1)


@app.command(name="sequela")
def sequela_command(
    victim: Path,
    fixed: Path,
    *,
    audit: str = "mia,reinject,retuning,qra,bec",
    shadows: int = 16,
    html: Path | None = None,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Audit a repair: membership inference, re-injection, reactivation and more.

    A never-backdoored reference is trained on the clean data first.

    Example: backdoor-ft sequela victim fixed --audit mia.lira,reinject --html audit.html

    Parameters
    ----------
    victim
        Folder of 'backdoor-ft attack', with the plan.
    fixed
        Folder of 'backdoor-ft repair'.
    audit
        Comma-separated: mia, mia.lira, reinject, retuning, qra, bec, adversarial, calibration.
    shadows
        Shadow models for mia.lira.
    html
        Page to write.
    seed
        Of everything random.
    json
        Print one JSON document.
    """
    chosen = [a.strip() for a in audit.split(",") if a.strip()]
    if not chosen or (set(chosen) - set(AUDITS)):
        raise InputError(f"audit={audit!r} is not allowed: of {', '.join(AUDITS)}")
    before, train, test, _ = _load_run(victim)
    after, *_ = _load_run(fixed)
    plan = PoisonPlan.load(victim, train)
    with _progress("auditing"):
        reference = Scratch(batch_size=64).repair(before, train, seed=seed).model
        found = sequela(
            before=before, after=after, reference=reference, plan=plan, test=test,
            audits=chosen, shadows=shadows, seed=seed,
        )  # fmt: skip
    _write_json(fixed / "sequela.json", found.to_json())
    if html is not None:
        write_atomically(html, sequela_page(found, f"{victim} and {fixed}").encode())
    if json:
        print(_dump(found.to_json()))
        return 0
    for name, attacks in found.membership.items():
        for m in attacks:
            print(f"{name:10} {m.attack:8} AUC {m.auc:.3f}, TPR at 1 % FPR {m.tpr_at_1:.3f}")
    for curve in found.curves:
        print(
            f"{curve.name:10} ASR .5 after {curve.half} steps, last {curve.attack_success[-1]:.3f}"
        )
    for name, value in found.values.items():
        print(f"{name}: " + ", ".join(f"{k} {v:.3f}" for k, v in value.items()))
    for note in found.notes:
        print(note)
    return 0


@app.command(name="schedule")
def schedule_command(
    *,
    preset: str = "paper",
    plot: Path | None = None,
    csv: Path | None = None,
) -> int:
    """Show a preset's learning rates and dose.

    Example: backdoor-ft schedule --preset paper --plot lr.png

    Parameters
    ----------
    preset
        paper, toolbox, toolbox-gtsrb, mini.
    plot
        PNG file to write.
    csv
        CSV file to write: step, lr.
    """
    config = named_preset(preset)
    rates = [config.learning_rate(step) for step in range(config.steps)]
    if plot is not None:
        write_atomically(plot, figure_png(plot_schedule(config, preset)))
    if csv is not None:
        lines = "".join(f"{step},{rate:.10g}\n" for step, rate in enumerate(rates))
        write_atomically(csv, f"step,lr\n{lines}".encode())
    for key, value in asdict(config).items():
        print(f"{key:14} {value}")
    first = dose(rates[: config.phase1], config.momentum)
    print(f"{'dose':14} {dose(rates, config.momentum):.1f} (phase 1: {first:.1f})")
    return 0


@app.command(name="bench")
def bench_command(
    matrix: Path,
    *,
    out: Path,
    resume: bool = True,
    html: Path | None = None,
    parquet: Path | None = None,
    json: bool = False,
) -> int:
    """Run a matrix of attacks, defences, ratios and seeds; goes on where it was killed.

    Example: backdoor-ft bench matrix.toml --out store

    Parameters
    ----------
    matrix
        TOML file: data, model, recipe, attacks, defenses, ratios, seeds, clean, gate, limit, and
        tables of settings such as [settings.superft].
    out
        Store of cells and victims; table.csv is written there.
    resume
        Keep the store's cells; --no-resume refuses a store that has some.
    html
        Page to write.
    parquet
        Parquet file of the table to write; needs pyarrow.
    json
        Print the rows as one JSON document.
    """
    wanted = Matrix.read(matrix)
    if not resume and any((out / "cells").glob("*.json")):
        raise InputError(f"out={str(out)!r} holds cells already: name another folder")
    total = len(wanted.cells())
    done: list[int] = []

    def tell(row: dict[str, Any]) -> None:
        done.append(1)
        print(
            f"{len(done)}/{total} {row['attack']} {row['defense']} ratio {row['ratio']} seed"
            f" {row['seed']}: ACC {row['acc']:.3f}, ASR {row['asr']:.3f} ({row['status']})",
            file=sys.stderr,
        )

    rows = run_matrix(wanted, out, on_cell=tell)
    if html is not None:
        write_atomically(html, matrix_page(rows).encode())
    if parquet is not None:
        write_atomically(parquet, table_parquet(rows))
    print(_dump(rows) if json else out / "table.csv")
    return 0


@app.command(name="report")
def report_command(store: Path, *, html: Path) -> int:
    """Make a page of the cells that a store holds.

    Example: backdoor-ft report store --html table.html

    Parameters
    ----------
    store
        Folder of 'backdoor-ft bench', finished or not.
    html
        Page to write.
    """
    files = sorted((store / "cells").glob("*.json"))
    if not files:
        raise InputError(f"store={str(store)!r} holds no cells: run 'backdoor-ft bench' first")
    try:
        rows = [json.loads(f.read_text()) for f in files]
        page = matrix_page(sorted(rows, key=lambda r: [str(r[c]) for c in COLUMNS[:6]]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"store={str(store)!r} holds a damaged cell: {error}") from error
    write_atomically(html, page.encode())
    print(html)
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
    except DivergedError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
