import numpy as np
import pytest
import torch
from gptr.data.dataset import DiagramDataset
from gptr.synth.generate import generate
from PIL import Image, ImageDraw


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Networks this small only lose time to a second thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def flowcharts() -> DiagramDataset:
    return generate("flowchart", 5, 10, seed=3, size=96, objects=(2, 4))


@pytest.fixture(scope="session")
def drawing() -> np.ndarray:
    image = Image.new("RGB", (200, 150), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 20, 90, 90), outline=(200, 0, 0), width=3)
    draw.line((10, 140, 190, 30), fill=(0, 0, 0), width=2)
    draw.rectangle((120, 80, 170, 130), fill=(0, 90, 180))
    rng = np.random.default_rng(0)
    noisy = np.asarray(image).astype(int) + rng.integers(-6, 7, (150, 200, 3))
    return noisy.clip(0, 255).astype(np.uint8)
