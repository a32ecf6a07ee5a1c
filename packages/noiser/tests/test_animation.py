import numpy as np
import pytest
from noiser import Enhancer, cli
from noiser.animation import enhance_frames, is_animated, read_animation
from noiser.enhancement import Settings
from PIL import Image


@pytest.fixture
def frames(photograph):
    """Let a dark scene pass a lamp."""
    dark = np.stack([photograph[:48, i : i + 64] // 5 for i in range(0, 40, 8)])
    dark[3:, 5:15, 5:15] = 250
    return dark


def save(frames, path, **options):
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=40, loop=3, **options)


@pytest.mark.parametrize(
    ("suffix", "options"), [(".webp", {"lossless": True}), (".png", {}), (".gif", {})]
)
def test_frames_durations_and_loops_are_kept(tmp_path, frames, suffix, options):
    source = tmp_path / f"a{suffix}"
    save(frames, source, **options)
    assert is_animated(source)
    with pytest.raises(SystemExit) as caught:
        cli.main(["enhance", str(source), "-o", str(tmp_path / "out"), "--method", "plus"])
    assert caught.value.code == 0
    before, after = read_animation(source), read_animation(tmp_path / "out" / f"a{suffix}")
    assert after.frames.shape == before.frames.shape == frames.shape
    assert after.durations == before.durations == (40.0,) * len(frames)
    assert after.loop == 3
    assert after.frames.mean() > 1.5 * before.frames.mean()
    if suffix != ".gif":  # GIF has 256 colours a frame
        lit = enhance_frames(before.frames, Enhancer(settings=Settings("plus")))
        assert np.array_equal(after.frames, lit)


@pytest.mark.parametrize("method", ["plus", "closed_form", "auto"])
def test_one_tone_for_all_frames(frames, method):
    """Equal pixels of different frames become equal: a lamp does not darken the rest."""
    still = np.stack([frames[0]] * 4)
    still[2:, :10, :10] = 255
    lit = enhance_frames(still, Enhancer(settings=Settings(method)))
    assert np.array_equal(lit[0, 20:], lit[3, 20:])
    assert lit[0, 20:].mean() > still[0, 20:].mean()


def test_transparency_is_kept(tmp_path, frames):
    alpha = np.zeros((*frames.shape[:3], 1), np.uint8)
    alpha[:, 10:30] = 255
    save(np.concatenate([frames, alpha], axis=3), tmp_path / "a.webp", lossless=True, exact=True)
    with pytest.raises(SystemExit):
        cli.main(["enhance", str(tmp_path / "a.webp"), "-o", str(tmp_path / "out")])
    assert np.array_equal(read_animation(tmp_path / "out" / "a.webp").alpha, alpha[..., 0])


def test_still_formats_refuse_an_animation(tmp_path, frames, capsys):
    save(frames, tmp_path / "a.gif")
    with pytest.raises(SystemExit) as caught:
        cli.main(
            ["enhance", str(tmp_path / "a.gif"), "-o", str(tmp_path / "out"), "--format", ".jpg"]
        )
    assert caught.value.code == 2
    assert "holds no animation" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.jpg"))


def test_the_gallery_shows_the_first_frames(tmp_path, frames):
    save(frames, tmp_path / "a.gif")
    page = tmp_path / "out" / "index.html"
    with pytest.raises(SystemExit) as caught:
        cli.main(
            ["enhance", str(tmp_path / "a.gif"), "-o", str(page.parent), "--gallery", str(page)]
        )
    assert caught.value.code == 0
    assert "a.gif" in page.read_text()
