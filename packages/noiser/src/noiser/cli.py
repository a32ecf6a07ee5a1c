"""The command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from noiser.enhancement import Method, enhance
from noiser.errors import InputError
from noiser.files import make_folder
from noiser.image_array import Padding
from noiser.images import WRITABLE, read_picture, write_picture
from noiser.network import SelfRegressionModel
from noiser.noise import NoiseKind
from noiser.training import TrainingLog, TrainingRecipe, train

_EXAMPLES = """Examples:

  noiser train -o srm.json

  noiser enhance night.jpg dusk.png -o out --model srm.json

  noiser enhance night.png -o out --method closed_form --strength 0.7

  noiser demo --out demo

Exit codes: 0 success, 2 bad input, 4 some files failed and the others were written, 130 Ctrl-C.
"""

app = App(
    name="noiser",
    help="Light for badly exposed photographs, from a network trained on noise alone.",
    help_epilogue=_EXAMPLES,
    help_format="plaintext",
    version=version("noiser"),
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
)
_PARTIAL = 4


@contextmanager
def _progress(label: str, total: int) -> Iterator[Progress]:
    """Show a bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = (
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        progress.add_task(label, total=total)
        yield progress


@app.command(name="train")
def train_command(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    channels: int = 18,
    noise: NoiseKind = "gaussian",
    sigma: float = 3.0,
    tv_weight: float = 1.0,
    steps: int = 2000,
    size: int = 104,
    seed: int = 0,
) -> int:
    """Train a network on noise and save it as JSON.

    Example: noiser train --channels 18 --seed 0 -o srm.json

    Parameters
    ----------
    output
        File to write.
    channels
        Hidden channels; 18 gives 993 parameters.
    noise
        Kind of the training images.
    sigma
        Standard deviation of the noise.
    tv_weight
        Weight of the total variation.
    steps
        Noise images seen.
    size
        Their height and width in pixels.
    seed
        Of weights and noise.
    """
    # Checked before the work, not after it.
    TrainingRecipe(channels, noise, sigma, tv_weight=tv_weight, steps=steps, size=size, seed=seed)
    make_folder(output.parent)
    if output.is_dir():
        raise InputError(f"output={str(output)!r} is a folder: name a file, for instance srm.json")
    log = TrainingLog()
    with _progress("training", steps) as progress:
        model = train(
            channels,
            noise,
            sigma,
            tv_weight=tv_weight,
            steps=steps,
            size=size,
            seed=seed,
            log=log,
            on_step=lambda step: progress.update(progress.task_ids[0], completed=step),
        )
    model.save(output)
    l1, tv = log.final()
    print(f"{output}: {model.parameters} parameters, final losses L1 {l1:.4f}, TV {tv:.4f}")
    return 0


@app.command(name="enhance")
def enhance_command(
    images: Annotated[list[Path], Parameter(negative="")],
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    model: Path | None = None,
    method: Method = "paper",
    strength: float = 1.0,
    padding: Padding = "reflect",
) -> int:
    """Enhance image files and write them under their names into a folder.

    Example: noiser enhance night.jpg dusk.png -o out --model srm.json

    Parameters
    ----------
    images
        Files: PNG (8 or 16 bits), JPEG, WebP, TIFF, BMP.
    out
        Folder to write into; created.
    model
        Network written by 'noiser train'; the method paper needs one.
    method
        paper (the network) or closed_form (z-score and tanh, no network).
    strength
        0 leaves the image as it is, 1 is the full effect.
    padding
        Border rule of the network.
    """
    if not images:
        raise InputError("images=[] is not allowed: name at least one image file")
    if method == "paper" and model is None:
        raise InputError(
            "model=None is not allowed with --method paper: name a file written by 'noiser train',"
            " or use --method closed_form"
        )
    network = None if model is None else SelfRegressionModel.load(model)
    make_folder(out)
    failures = []
    for path in images:
        try:
            _enhance_file(path, out, network, method, strength, padding)
        except InputError as error:
            failures.append(str(error))
    for failure in failures:
        print(failure, file=sys.stderr)
    if failures:
        return _PARTIAL if len(failures) < len(images) else 2
    return 0


def _enhance_file(
    path: Path,
    out: Path,
    network: SelfRegressionModel | None,
    method: Method,
    strength: float,
    padding: Padding,
) -> None:
    target = out / (path.name if path.suffix.lower() in WRITABLE else f"{path.stem}.png")
    if target.exists() and path.exists() and target.samefile(path):
        raise InputError(f"out={str(out)!r} would overwrite the input: name another folder")
    picture = read_picture(path)
    try:
        pixels = enhance(picture.pixels, network, method, strength, padding)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if (picture.pixels == picture.pixels[:1, :1]).all():
        print(f"{path}: has one single colour and was left unchanged", file=sys.stderr)
    for note in picture.notes:
        print(f"{path}: {note}", file=sys.stderr)
    write_picture(picture.with_pixels(pixels), target)
    print(target)


@app.command(name="demo")
def demo_command(*, out: Path, seed: int = 0) -> int:
    """Train on noise and enhance real photographs, with figures and a report.

    Example: noiser demo --out demo

    Parameters
    ----------
    out
        Folder for result.json, report.html and the figures; created.
    seed
        Of the training and of the camera's noise.
    """
    try:
        from noiser.demo import run_demo
    except ModuleNotFoundError as error:
        raise InputError(f"module={error.name!r} is missing: pip install 'noiser[demo]'") from error
    with _progress("training", 2000) as progress:
        result = run_demo(
            out,
            seed,
            on_step=lambda step: progress.update(progress.task_ids[0], completed=step),
        )
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
