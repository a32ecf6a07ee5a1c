import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from noiser import Enhancer, InputError
from noiser.batch import Job, plan, run_jobs, take_shard
from noiser.gallery import gallery_page
from PIL import Image


@pytest.fixture
def folder(tmp_path, photograph):
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    Image.fromarray(photograph // 8).save(root / "a.png")
    Image.fromarray(photograph // 6).save(root / "b.jpg")
    Image.fromarray(photograph // 7).save(root / "sub" / "c.gif")
    (root / "notes.txt").write_text("no image")
    (root / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return root


def test_folders_keep_their_structure(folder, tmp_path):
    out = tmp_path / "out"
    flat = plan([folder], out)
    assert [job.target.name for job in flat] == ["a.png", "b.jpg", "bad.png"]
    deep = plan([folder], out, recursive=True)
    assert out / "sub" / "c.png" in [job.target for job in deep]
    assert {job.target.suffix for job in plan([folder], out, suffix=".webp")} == {".webp"}


def test_two_inputs_never_share_a_result(folder, tmp_path):
    with pytest.raises(InputError, match="both become"):
        plan([folder / "a.png", folder / "sub" / ".." / "a.png"], tmp_path / "out")
    with pytest.raises(InputError, match="no image file"):
        plan([tmp_path / "photos" / "sub" / "nothing"][:0], tmp_path)


def test_shards_are_a_partition():
    jobs = [Job(Path(str(i)), Path(str(i))) for i in range(10)]
    parts = [take_shard(jobs, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(j.source.name for part in parts for j in part) == [str(i) for i in range(10)]
    for wrong in ("0/3", "4/3", "a/b", "3", "1/0"):
        with pytest.raises(InputError, match="shard"):
            take_shard(jobs, wrong)


def test_the_batch_lists_failures_and_resumes(folder, tmp_path):
    jobs = plan([folder], tmp_path / "out", recursive=True)
    first = list(run_jobs(jobs, Enhancer(), with_reports=True))
    assert {Path(o.source).name: o.status for o in first} == {
        "a.png": "written", "b.jpg": "written", "bad.png": "failed", "c.gif": "written",
    }  # fmt: skip
    written = [o for o in first if o.status == "written"]
    assert all(o.after["mean"] > o.before["mean"] + 0.2 for o in written)
    again = list(run_jobs(jobs, Enhancer(), resume=True))
    assert sorted(o.status for o in again) == ["failed", "skipped", "skipped", "skipped"]


def test_the_gallery_holds_everything_it_shows(folder):
    page = gallery_page([(str(folder / "a.png"), str(folder / "b.jpg"))], "plus")
    assert page.count("data:image/jpeg;base64,") == 2
    assert "http" not in page.replace("http-equiv", "")


def test_report_and_gallery_of_the_command(folder, tmp_path):
    command = [sys.executable, "-m", "noiser.cli", "enhance", str(folder), "-o", "out",
               "--report", "report.json", "--gallery", "index.html", "--json"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stdout == (tmp_path / "report.json").read_text()
    report = json.loads(done.stdout)
    assert [f["status"] for f in report["files"]] == ["written", "written", "failed"]
    assert (tmp_path / "index.html").stat().st_size > 5000


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, photograph):
    """A limit on the size of files stands for a disk that is full."""
    Image.fromarray(photograph // 8).save(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, "-m", "noiser.cli", "enhance", "a.png", "-o", "out"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_kill_in_the_middle_leaves_whole_files_only(tmp_path, photograph):
    rng = np.random.default_rng(0)
    for i in range(12):
        noisy = (photograph // 8 + rng.integers(0, 9, photograph.shape)).astype(np.uint8)
        Image.fromarray(np.tile(noisy, (3, 3, 1))).save(tmp_path / f"{i:02d}.png")
    files = sorted(p.name for p in tmp_path.glob("*.png"))
    command = [sys.executable, "-m", "noiser.cli", "enhance", *files, "-o", "out", "--resume"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE)
    # The first name may come late, when output is buffered: watch the folder instead.
    while process.poll() is None and not list((tmp_path / "out").glob("[0-9]*.png")):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for path in (tmp_path / "out").glob("[0-9]*.png"):
        with Image.open(path) as image:
            image.load()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0
    whole = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("[0-9]*.png")}
    assert sorted(whole) == files
    fresh = [*command[:-2], "fresh"]
    subprocess.run(fresh, cwd=tmp_path, capture_output=True, check=True)
    assert whole == {p.name: p.read_bytes() for p in (tmp_path / "fresh").iterdir()}
