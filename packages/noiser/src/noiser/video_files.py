"""Video files through PyAV; needs the extra `video`."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noiser.errors import InputError
from noiser.video import VideoEnhancer, VideoMethod

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from noiser.network import SelfRegressionModel


def _av() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise InputError("module='av' is missing: pip install 'noiser[video]'") from error
    return av


def read_frames(path: Path | str) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """Yield the frames of a video file as 8-bit RGB.

    Parameters
    ----------
    path : any file that FFmpeg reads

    Raises
    ------
    InputError
        PyAV is not installed, or the file is no video.
    """
    av = _av()
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
    except (OSError, av.FFmpegError, IndexError, ValueError) as error:
        raise InputError(
            f"video={str(path)!r} cannot be read ({error.__class__.__name__}): name a video file"
        ) from error


def enhance_video(
    source: Path | str,
    target: Path | str,
    method: VideoMethod = "paper",
    model: SelfRegressionModel | None = None,
    half_life: float = 0.5,
    codec: str = "libx264",
    threads: int | None = None,
    on_frame: Callable[[int], object] | None = None,
    *,
    device: str | None = None,
    seconds: float | None = None,
) -> int:
    """Enhance a video file; the target appears when it is complete.

    Parameters
    ----------
    source : any file that FFmpeg reads; its first video stream is taken, sound is left out
    target : file to write; its suffix chooses the container
    method, model, half_life, threads : see `VideoEnhancer`
    codec : of the target, as FFmpeg names it
    on_frame : called with the number of finished frames
    device : FFmpeg's name of the capture device that `source` is an address of, such as "v4l2"
    seconds : length after which to stop; None for the whole

    Returns
    -------
    number of frames

    Raises
    ------
    InputError
        A file cannot be read or written, or an argument is not allowed.
    """
    av = _av()
    target = Path(target)
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.part{target.suffix}")
    done = 0
    try:
        try:
            with av.open(str(source), format=device) as container:
                stream = container.streams.video[0]
                rate = stream.average_rate or 30
                enhancer = VideoEnhancer(method, model, half_life, float(rate), threads)
                with av.open(str(temporary), "w") as output:
                    out = output.add_stream(codec, rate=rate)
                    out.width, out.height = stream.width, stream.height
                    out.pix_fmt = "yuv420p"
                    for frame in container.decode(stream):
                        pixels = enhancer.enhance(frame.to_ndarray(format="rgb24"))
                        encoded = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                        output.mux(out.encode(encoded))
                        done += 1
                        if on_frame is not None:
                            on_frame(done)
                        if seconds is not None and done >= seconds * rate:
                            break
                    output.mux(out.encode(None))
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, av.FFmpegError, IndexError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"video={str(source)!r} to {str(target)!r} failed ({error.__class__.__name__}:"
            f" {' '.join(str(error).split())}): name a video file with even sides, a folder with"
            " write permission and a codec that the container takes"
        ) from error
    return done
