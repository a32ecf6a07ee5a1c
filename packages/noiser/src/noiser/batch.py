"""Many image files through one enhancer: finding, skipping, failing one by one, reporting."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from noiser.animation import enhance_animation, is_animated
from noiser.assess import assess
from noiser.decoders import HEIF_SUFFIXES, RAW_SUFFIXES
from noiser.enhancement import Enhancer, is_one_colour
from noiser.errors import InputError
from noiser.files import make_folder
from noiser.images import WRITABLE, read_picture, write_picture

READABLE = {
    *WRITABLE, *RAW_SUFFIXES, *HEIF_SUFFIXES, ".gif", ".jp2", ".ppm", ".pgm", ".tga", ".avif",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One file to enhance.

    Parameters
    ----------
    source : file to read
    target : file to write
    """

    source: Path
    target: Path


@dataclass(frozen=True)
class Outcome:
    """What became of one file.

    Parameters
    ----------
    source, target : as in the job
    status : "written", "skipped" (it was there already) or "failed"
    reason : one line, where it failed
    notes : what had to be converted, or why nothing changed
    seconds : for reading, enhancing and writing
    before, after : exposure of both images, where there are two
    """

    source: str
    target: str
    status: str
    reason: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain values."""
        return asdict(self)


def plan(
    paths: Iterable[Path], out: Path, recursive: bool = False, suffix: str | None = None
) -> list[Job]:
    """List the files to enhance and the names of their results.

    Parameters
    ----------
    paths : image files, or folders whose image files are meant
    out : folder for the results; sub-folders are kept
    recursive : look into sub-folders
    suffix : format of the results, such as ".png"; None keeps the format where it can be written

    Returns
    -------
    jobs in the order of the names

    Raises
    ------
    InputError
        Nothing was found, or two files would have the same result.
    """
    if suffix is not None and suffix.lower() not in WRITABLE:
        raise InputError(f"format={suffix!r} is not allowed: one of {', '.join(WRITABLE)}")
    found: list[tuple[Path, Path]] = []
    for path in paths:
        if path.is_dir():
            inside = path.rglob("*") if recursive else path.glob("*")
            files = sorted(p for p in inside if p.suffix.lower() in READABLE and p.is_file())
            found += [(p, p.relative_to(path)) for p in files]
        else:
            found.append((path, Path(path.name)))
    if not found:
        raise InputError(
            "images: no image file was found; name files, or folders that hold some"
            " (with --recursive also in their sub-folders)"
        )
    jobs, taken = [], dict[Path, Path]()
    for source, name in found:
        kept = name.suffix.lower() in WRITABLE or is_animated(source)
        keep = kept and suffix is None
        target = out / (name if keep else name.with_suffix(suffix or ".png"))
        if target in taken:
            raise InputError(
                f"images: {str(source)!r} and {str(taken[target])!r} would both become"
                f" {str(target)!r}; enhance them into two folders"
            )
        taken[target] = source
        jobs.append(Job(source, target))
    return jobs


def take_shard(jobs: list[Job], shard: str) -> list[Job]:
    """Every n-th job, beginning with the i-th, for "i/n": one part of a job array.

    Raises
    ------
    InputError
        `shard` is not of that form.

    Examples
    --------
    >>> jobs = [Job(Path(str(i)), Path(str(i))) for i in range(5)]
    >>> [job.source.name for job in take_shard(jobs, "2/3")]
    ['1', '4']
    """
    words = shard.split("/")
    if len(words) == 2 and all(word.isdecimal() for word in words):
        index, count = map(int, words)
        if 1 <= index <= count:
            return jobs[index - 1 :: count]
    raise InputError(f"shard={shard!r} is not allowed: 'i/n' with 1 <= i <= n, for instance 2/8")


def run_jobs(
    jobs: Iterable[Job], enhancer: Enhancer, resume: bool = False, with_reports: bool = False
) -> Iterator[Outcome]:
    """Enhance file after file; a file that fails does not stop the others.

    Parameters
    ----------
    jobs : files to enhance
    enhancer : how
    resume : leave out files whose result is there; results are never half-written
    with_reports : measure the exposure before and after

    Yields
    ------
    Outcome of each job
    """
    for job in jobs:
        if resume and job.target.is_file():
            yield Outcome(str(job.source), str(job.target), "skipped")
            continue
        try:
            yield _run(job, enhancer, with_reports)
        except InputError as error:
            message = str(error)
            if str(job.source) not in message and str(job.target) not in message:
                message = f"{job.source}: {message}"
            yield Outcome(str(job.source), str(job.target), "failed", message)


def _run(job: Job, enhancer: Enhancer, with_reports: bool) -> Outcome:
    started = time.perf_counter()
    if job.target.exists() and job.source.exists() and job.target.samefile(job.source):
        raise InputError(
            f"out={str(job.target.parent)!r} would overwrite the input: name another folder"
        )
    if is_animated(job.source):
        make_folder(job.target.parent)
        animation = enhance_animation(job.source, job.target, enhancer)
        return Outcome(
            str(job.source),
            str(job.target),
            "written",
            notes=(f"{len(animation.frames)} frames, one tone for all",),
            seconds=round(time.perf_counter() - started, 4),
        )
    picture = read_picture(job.source)
    pixels = enhancer(picture.pixels)
    notes = list(picture.notes)
    if is_one_colour(picture.pixels):
        notes.append("one single colour, left unchanged")
    make_folder(job.target.parent)
    write_picture(picture.with_pixels(pixels), job.target)
    return Outcome(
        str(job.source),
        str(job.target),
        "written",
        notes=tuple(notes),
        seconds=round(time.perf_counter() - started, 4),
        before=assess(picture.pixels).to_json() if with_reports else None,
        after=assess(pixels).to_json() if with_reports else None,
    )
