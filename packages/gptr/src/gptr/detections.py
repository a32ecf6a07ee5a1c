"""What a detector found in an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Detections:
    """Boxes, scores and classes of one image, best first.

    Attributes
    ----------
    xyxy
        (D, 4) corners in pixels of the original image.
    scores
        (D,) in 0..1.
    labels
        (D,) class indices.
    size
        Height and width of the image.
    names
        Class names.
    category_ids
        The data set's own id of each class.
    image
        The image, where it was kept for plots.
    """

    xyxy: Float[NDArray, "D 4"]
    scores: Float[NDArray, " D"]
    labels: Int[NDArray, " D"]
    size: tuple[int, int]
    names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    image: NDArray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        best = ", ".join(
            f"{self.name(int(k))} {s:.2f}" for k, s in list(zip(self.labels, self.scores))[:3]
        )
        return f"Detections({len(self)} in {self.size[1]} x {self.size[0]}: {best or 'none'})"

    def name(self, label: int) -> str:
        """Return the name of a class."""
        return self.names[label] if label < len(self.names) else str(label)

    def above(self, threshold: float) -> Detections:
        """Keep scores of at least a threshold."""
        keep = self.scores >= threshold
        return Detections(
            self.xyxy[keep], self.scores[keep], self.labels[keep], self.size, self.names,
            self.category_ids, self.image,
        )  # fmt: skip

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Return COCO result entries (bbox is x, y, width, height in pixels)."""
        ids = self.category_ids or range(int(self.labels.max(initial=-1)) + 1)
        return [
            {
                "image_id": image_id,
                "category_id": int(ids[int(k)]),
                "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
                "score": float(s),
            }
            for (x0, y0, x1, y1), s, k in zip(self.xyxy, self.scores, self.labels, strict=True)
        ]

    def to_svg(self, path: str | Path | None = None) -> str:
        """Return (and write, where a path is given) an SVG of the boxes, with the image inside."""
        from gptr._files import write_text
        from gptr.data.writers import svg

        text = svg(self)
        if path is not None:
            write_text(path, text)
        return text

    def plot(self, title: str = "") -> Figure:
        """Return a figure of the image and the boxes."""
        from gptr.figures import detections

        return detections([self], [title])
