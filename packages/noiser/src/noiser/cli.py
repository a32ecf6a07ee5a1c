"""The command line."""

from __future__ import annotations

import sys
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from json import dumps
from math import isfinite
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from noiser.assess import assess
from noiser.batch import Outcome, plan, run_jobs, take_shard
from noiser.comparison import (
    compare_files,
    comparison_csv,
    comparison_page,
    mean_figures,
    operators,
)
from noiser.cube import Cube
from noiser.enhancement import Denoise, Enhancer, Method, Settings
from noiser.errors import InputError
from noiser.files import make_folder, write_atomically
from noiser.gallery import gallery_page, pixels_of
from noiser.image_array import Padding
from noiser.images import read_picture
from noiser.model_commands import bench_command, export_command, train_command
from noiser.network import SelfRegressionModel
from noiser.progress import progress_bar
from noiser.summaries import assess_page
from noiser.video import VideoMethod
from noiser.video_files import enhance_video

_EXAMPLES = """Examples:

  noiser enhance night.jpg dusk.png -o out

  noiser enhance photos -o out --recursive --resume --gallery out/index.html

  noiser enhance night.png -o out --method paper --strength 0.7

  noiser assess photos --json

  noiser lut shot.png -o look.cube

  noiser video night.mp4 -o day.mp4

  noiser compare photos --reference well_exposed -o compare.html

  noiser webcam -o clip.mp4 --seconds 10

  noiser export -o srm18.onnx

  noiser bench --size 4k

  noiser train --seed 1 -o srm.json

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
app.command(train_command, name="train")
app.command(export_command, name="export")
app.command(bench_command, name="bench")
_PARTIAL = 4


@app.command(name="enhance")
def enhance_command(
    images: Annotated[list[Path], Parameter(negative="")],
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    method: Method = "auto",
    strength: float = 1.0,
    target: float | Literal["auto"] = "auto",
    contrast: float = 0.5,
    chroma: float = 0.5,
    black_point: float | None = None,
    denoise: Denoise = "off",
    padding: Padding = "reflect",
    model: Path | None = None,
    threads: int | None = None,
    recursive: bool = False,
    format: str = "keep",
    resume: bool = False,
    shard: str = "1/1",
    report: Path | None = None,
    gallery: Path | None = None,
    json: bool = False,
) -> int:
    """Enhance image files, or all images of folders, and write them into a folder.

    Example: noiser enhance photos -o out --recursive --resume --gallery out/index.html

    Parameters
    ----------
    images
        Files (PNG and TIFF with 8 or 16 bits, JPEG, WebP, BMP, animations, HEIF, camera RAW and
        what else Pillow reads), folders.
    out
        Folder to write into; created.
    method
        auto (plus, as far as the exposure needs it), plus (tone curve with kept colours and
        detail), paper (the network), closed_form (z-score and tanh, no network).
    strength
        0 leaves the image as it is, 1 is the full effect.
    target
        Wanted mean of the result, between 0 and 1, or auto.
    contrast
        0 ... 1; 0.5 is neutral.
    chroma
        0 (gray world) ... 1 (colours kept); 0.5 is neutral.
    black_point
        Fraction of the darkest values that become black, 0 ... 0.2.
    denoise
        off, auto, or a standard deviation in 0 ... 0.5; of the methods auto and plus.
    padding
        Border rule of the network.
    model
        Network written by 'noiser train'; without it, the one that ships with the package.
    threads
        Processor threads; without it, all cores.
    recursive
        Look into sub-folders.
    format
        Suffix of the results, such as .png, or keep.
    resume
        Leave out files whose result is there already.
    shard
        i/n: do every n-th file, beginning with the i-th.
    report
        JSON file for what became of each file.
    gallery
        HTML page with before and after.
    json
        Print the report to standard output instead of the names.
    """
    if not images:
        raise InputError("images=[] is not allowed: name at least one image file")
    settings = Settings(
        method, strength, target, contrast, chroma, black_point, denoise, padding, None, threads
    )
    enhancer = Enhancer(None if model is None else SelfRegressionModel.load(model), settings)
    make_folder(out)
    jobs = take_shard(plan(images, out, recursive, None if format == "keep" else format), shard)
    outcomes: list[Outcome] = []
    wanted = bool(report or gallery or json)
    with progress_bar("enhancing", len(jobs)) as progress:
        for outcome in run_jobs(jobs, enhancer, resume, wanted):
            outcomes.append(outcome)
            progress.update(progress.task_ids[0], completed=len(outcomes))
            _tell(outcome, quiet=json)
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    content = {
        "schema_version": 1,
        "settings": asdict(settings),
        "files": [outcome.to_json() for outcome in outcomes],
    }
    text = dumps(content, indent=1) + "\n"
    if report is not None:
        write_atomically(report, text.encode())
    if gallery is not None:
        pairs = [(o.source, o.target) for o in outcomes if o.status != "failed"]
        write_atomically(gallery, gallery_page(pairs, settings.method).encode())
        print(gallery, file=sys.stderr)
    if json:
        print(text, end="")
    return 0 if failed == 0 else _PARTIAL if failed < len(outcomes) else 2


def _tell(outcome: Outcome, quiet: bool) -> None:
    if outcome.status == "failed":
        print(outcome.reason, file=sys.stderr)
        return
    for note in outcome.notes:
        print(f"{outcome.source}: {note}", file=sys.stderr)
    if not quiet and outcome.status == "written":
        print(outcome.target)


@app.command(name="assess")
def assess_command(
    images: Annotated[list[Path], Parameter(negative="")],
    *,
    recursive: bool = False,
    page: Path | None = None,
    json: bool = False,
) -> int:
    """Tell how images are exposed and what the method auto would do.

    Example: noiser assess photos --json

    Parameters
    ----------
    images
        Files or folders.
    recursive
        Look into sub-folders.
    page
        HTML page with the images and their histograms.
    json
        Print one JSON document.
    """
    if not images:
        raise InputError("images=[] is not allowed: name at least one image file")
    found, failures = {}, []
    for job in plan(images, Path(), recursive):
        try:
            found[str(job.source)] = assess(read_picture(job.source).pixels)
        except InputError as error:
            failures.append(f"{error}")
    if json:
        print(dumps({name: report.to_json() for name, report in found.items()}, indent=1))
    else:
        for name, report in found.items():
            print(
                f"{name}: {report.recommendation}, mean {report.mean:.2f}, dark {report.under:.0%},"
                f" bright {report.over:.0%}, cast {report.cast:.2f}, noise {report.noise_sigma:.4f}"
            )
    if page is not None:
        shown = [(name, pixels_of(Path(name)), report) for name, report in found.items()]
        write_atomically(page, assess_page(shown).encode())
        print(page, file=sys.stderr)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 0 if not failures else _PARTIAL if found else 2


@app.command(name="lut")
def lut_command(
    image: Path,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    method: Literal["auto", "plus", "closed_form"] = "plus",
    size: int = 33,
    contrast: float = 0.5,
    chroma: float = 0.5,
) -> int:
    """Write the colour curve that an image gets as a .cube file for video and photo software.

    Example: noiser lut shot.png -o look.cube

    Parameters
    ----------
    image
        Shot that the curve is measured on.
    output
        .cube file to write.
    method
        The network is left out: it looks at neighbours, a table cannot.
    size
        Nodes along one axis, 2 ... 256.
    contrast
        0 ... 1; 0.5 is neutral.
    chroma
        0 ... 1; 0.5 is neutral.
    """
    enhancer = Enhancer(settings=Settings(method, contrast=contrast, chroma=chroma))
    pixels = read_picture(image).pixels
    cube = Cube.sample(lambda rgb: enhancer.map_colours(pixels, rgb), size, f"noiser {method}")
    cube.save(output)
    print(output)
    return 0


@app.command(name="video")
def video_command(
    source: Path,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    method: VideoMethod = "paper",
    model: Path | None = None,
    half_life: float = 0.5,
    codec: str = "libx264",
    threads: int | None = None,
) -> int:
    """Enhance a video file; sound is left out.

    Example: noiser video night.mp4 -o day.mp4 --half-life 0.5

    Parameters
    ----------
    source
        Video file.
    output
        File to write; its suffix chooses the container.
    method
        paper (the network), plus (tone curve with kept colours and detail) or closed_form.
    model
        Network written by 'noiser train'; without it, the one that ships with the package.
    half_life
        Seconds after which a change of the content has half arrived; the exposure is followed at
        once.
    codec
        Of the output, as FFmpeg names it.
    threads
        Processor threads; without it, all cores.
    """
    network = None if model is None else SelfRegressionModel.load(model)
    count = enhance_video(source, output, method, network, half_life, codec, threads)
    print(f"{output}: {count} frames")
    return 0


@app.command(name="compare")
def compare_command(
    images: Annotated[list[Path], Parameter(negative="")],
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    methods: str = "paper,closed_form,plus,auto,gamma,clahe,lime",
    reference: Path | None = None,
    recursive: bool = False,
    table: Path | None = None,
    json: bool = False,
) -> int:
    """Put methods and baselines side by side on a page, with figures.

    Example: noiser compare photos --reference well_exposed -o compare.html --table compare.csv

    Parameters
    ----------
    images
        Files or folders.
    output
        HTML page to write.
    methods
        Comma-separated: auto, plus, paper, closed_form, identity, gain, gamma, gray_world,
        histogram_equalisation, clahe, lime, msrcr, zscore.
    reference
        Folder with a well-exposed file of the same stem for each image; then PSNR and SSIM too.
    recursive
        Look into sub-folders.
    table
        CSV file with the figures of each image.
    json
        Print the means as one JSON document.
    """
    if not images:
        raise InputError("images=[] is not allowed: name at least one image file")
    if reference is not None and not reference.is_dir():
        raise InputError(f"reference={str(reference)!r} is no folder: name a folder of references")
    chosen = operators(name.strip() for name in methods.split(",") if name.strip())
    jobs = plan(images, Path(), recursive)
    found = []
    with progress_bar("comparing", len(jobs)) as progress:
        for one in compare_files((job.source for job in jobs), chosen, reference):
            found.append(one)
            progress.update(progress.task_ids[0], completed=len(found))
    if table is not None:
        write_atomically(table, comparison_csv(found).encode())
    write_atomically(output, comparison_page(found).encode())
    means = mean_figures(found)
    if json:
        print(dumps(means, indent=1))
        return 0
    for method, row in means.items():
        score = (
            "" if row["psnr"] is None else f", PSNR {row['psnr']:.2f} dB, SSIM {row['ssim']:.3f}"
        )
        print(f"{method:24} mean {row['mean']:.2f}, cast {row['colour_cast']:.3f}{score}")
    print(output)
    return 0


@app.command(name="webcam")
def webcam_command(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    device: str = "/dev/video0",
    driver: str = "v4l2",
    seconds: float = 10.0,
    method: VideoMethod = "paper",
    half_life: float = 0.5,
    threads: int | None = None,
) -> int:
    """Record from a camera, enhanced while it is recorded; Ctrl-C leaves no half file.

    Example: noiser webcam -o clip.mp4 --seconds 10

    Parameters
    ----------
    output
        Video file to write.
    device
        Address of the camera.
    driver
        FFmpeg's name of the capture system: v4l2 (Linux), avfoundation (macOS), dshow (Windows).
    seconds
        Length of the recording, by the camera's frame rate.
    method
        paper (the network), plus (tone curve with kept colours and detail) or closed_form.
    half_life
        Seconds after which a change of the content has half arrived.
    threads
        Processor threads; without it, all cores.
    """
    if not (isfinite(seconds) and seconds > 0):
        raise InputError(f"seconds={seconds} is not allowed: a finite number above 0")
    if driver == "v4l2" and not Path(device).exists():
        raise InputError(f"device={device!r} does not exist: connect a camera or name another one")
    count = enhance_video(
        device, output, method, None, half_life, threads=threads, device=driver, seconds=seconds
    )
    print(f"{output}: {count} frames")
    return 0


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
    missing = [name for name in ("skimage", "matplotlib") if find_spec(name) is None]
    if missing:
        raise InputError(f"module={missing[0]!r} is missing: pip install 'noiser[demo]'")
    from noiser.demo import run_demo

    with progress_bar("training", 2000) as progress:
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
