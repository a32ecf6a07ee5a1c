from dataclasses import replace

import numpy as np
import pytest
from noiser import Enhancer, InputError, VideoEnhancer, collect_statistics, enhance
from noiser.tone import LUMA, ToneCurve, exponent_for_mean
from noiser.video import blended_curve, exposure_ratio, scaled, scaled_curve

METHODS = ["plus", "paper", "closed_form"]


def flicker(frames):
    return np.abs(np.diff([f.mean() for f in frames])).mean()


@pytest.fixture
def scene(photograph):
    return photograph / 255 * 0.2


def test_scaled_statistics_are_those_of_the_scaled_image(scene):
    expected = collect_statistics(0.6 * scene)
    found = scaled(collect_statistics(scene), 0.6)
    assert np.abs(found.mean - expected.mean).max() < 1e-12
    assert np.abs(found.covariance - expected.covariance).max() < 1e-12


def test_exposure_ratio_sees_the_gain_and_not_a_lamp(scene):
    before = scene[..., 0] + 0.1
    now = 1.3 * before
    now[:20, :20] = 1.0
    assert exposure_ratio(before, now) == pytest.approx(1.3, rel=1e-6)
    assert exposure_ratio(before * 0, now) == 1


def test_a_scaled_curve_does_the_same_to_the_scaled_image(scene):
    curve = Enhancer().curve(scene)
    found = scaled_curve(curve, 0.5).map_colours(0.5 * scene)
    assert np.abs(found - curve.map_colours(scene)).max() < 1e-9


def test_curves_blend_to_the_moments_of_the_blended_exponent(scene):
    """Between two exponents as far apart as a shot's frames, the moments are the image's."""
    curves = [measured(scene, mean) for mean in (0.37, 0.42)]
    half = blended_curve(*curves, 0.5)
    powered = scene**half.exponent
    assert np.abs(half.channel_mean / powered.mean(axis=(0, 1)) - 1).max() < 0.005
    assert np.abs(half.channel_deviation / powered.std(axis=(0, 1)) - 1).max() < 0.005
    black = replace(curves[0], channel_mean=np.zeros(3))
    assert (blended_curve(black, curves[1], 0.5).channel_mean > 0).all()


def measured(scene, mean):
    exponent = exponent_for_mean(scene @ LUMA, mean)
    powered = scene**exponent
    y = powered @ LUMA
    moments = powered.mean(axis=(0, 1)), powered.std(axis=(0, 1)), y.mean(), y.std()
    return ToneCurve(exponent, *moments, slope=0.6, chroma=0.6, middle=0.5, detail=0.9)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float64])
def test_the_first_frame_of_plus_is_the_still_image(scene, kind):
    frame = (scene * (1 if kind is np.float64 else np.iinfo(kind).max)).astype(kind)
    out = VideoEnhancer("plus").enhance(frame)
    assert out.dtype == kind
    assert np.abs(out.astype(float) - enhance(frame, "plus")).max() < 1e-3
    again = VideoEnhancer("plus", threads=1)
    for _ in range(5):
        last = again.enhance(frame)  # a still scene stays what it is
    assert np.abs(last.astype(float) - out).max() <= (1 if kind is not np.float64 else 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_jitter_of_the_exposure_does_not_flicker(scene, method):
    rng = np.random.default_rng(0)
    gains = 1 + rng.uniform(-0.1, 0.1, 12)
    shaken = [np.rint(65535 * g * scene).astype(np.uint16) for g in gains]
    out = list(VideoEnhancer(method).frames(shaken))
    levels = [f / 257 for f in out]
    assert flicker(levels) < 0.2
    assert flicker([f / 257 for f in shaken]) > 0.5


@pytest.mark.parametrize("method", METHODS)
def test_a_lamp_does_not_pump_and_a_cut_is_seen(scene, method):
    dark = np.rint(255 * scene).astype(np.uint8)
    lamp = dark.copy()
    lamp[:12, :12] = 255
    own = VideoEnhancer(method, half_life=0)
    smooth = VideoEnhancer(method, half_life=0.5)
    rest = np.s_[30:, 30:]
    steps = []
    for enhancer in (own, smooth):
        a, b = enhancer.enhance(dark), enhancer.enhance(lamp)
        steps.append(abs(a[rest].mean() - b[rest].mean()))
        assert enhancer.cuts == 0
    assert steps[1] < 0.25 * steps[0]
    other = np.ascontiguousarray(255 - dark[::-1, ::-1])
    after_cut = smooth.enhance(other)
    assert smooth.cuts == 1
    assert np.array_equal(after_cut, VideoEnhancer(method).enhance(other))


@pytest.mark.parametrize("method", METHODS)
def test_a_jump_of_the_exposure_starts_anew(scene, method):
    bright, dark = (np.rint(65535 * g * scene).astype(np.uint16) for g in (1.0, 0.3))
    video = VideoEnhancer(method)
    video.enhance(bright)
    out = video.enhance(dark)
    assert video.cuts == 1
    assert np.array_equal(out, VideoEnhancer(method).enhance(dark))


def test_bad_arguments(scene):
    for options in ({"method": "auto"}, {"half_life": -1.0}, {"frame_rate": 0.0}):
        with pytest.raises(InputError, match=next(iter(options))):
            VideoEnhancer(**options)
    black = np.zeros((4, 4, 3), np.uint8)
    assert np.array_equal(VideoEnhancer().enhance(black), black)


@pytest.mark.peer
def test_a_video_file_goes_through(tmp_path, photograph):
    av = pytest.importorskip("av")
    from noiser.video_files import enhance_video, read_frames

    with av.open(str(tmp_path / "night.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 112, 96, "bgr0"
        for _ in range(6):
            frame = av.VideoFrame.from_ndarray(photograph // 6, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert enhance_video(tmp_path / "night.mkv", tmp_path / "day.mp4") == 6
    frames = list(read_frames(tmp_path / "day.mp4"))
    assert len(frames) == 6
    assert abs(frames[-1].mean() - 127) < 25
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InputError, match=r"text\.mp4"):
        enhance_video(tmp_path / "text.mp4", tmp_path / "out.mp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["day.mp4", "night.mkv", "text.mp4"]


def test_webcam_records_a_stream_for_a_while(tmp_path, capsys):
    """FFmpeg's own test source stands in for the camera."""
    av = pytest.importorskip("av")
    from noiser import cli

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            cli.main(["webcam", "-o", str(tmp_path / "a.mp4"), *arguments])
        return caught.value.code

    source = ["--device", "testsrc=size=64x48:rate=10", "--driver", "lavfi"]
    assert run(*source, "--seconds", "0.8") == 0
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 8
    (tmp_path / "a.mp4").unlink()
    for arguments, word in (
        (["--device", str(tmp_path / "camera")], "device="),
        ([*source, "--seconds", "0"], "seconds=0"),
        (["--device", "x", "--driver", "nothing"], "video="),
    ):
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert word in error
        assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
