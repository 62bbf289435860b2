"""Labels beside the points they name, placed where they cover nothing."""

from functools import partial
from typing import Any

import numpy as np

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1
LabelPosition = tuple[float, float, str, str]  # offset in points, alignment
Label = tuple[str, str, list[Point]]  # text, its color, its points

# offsets in points from the point, with the alignment of the text: right first, then the corners; near it all of them
LABEL_POSITIONS: list[LabelPosition] = [
    (
        dx * r,
        dy * r,
        "left" if dx > 0 else "right" if dx < 0 else "center",
        "bottom" if dy > 0 else "top" if dy < 0 else "center",
    )
    for r in (1.0, 1.4)
    for dx, dy in ((9, 0), (-9, 0), (7, 7), (-7, 7), (7, -7), (-7, -7), (0, 11), (0, -11))
]


ALIGNMENT_FRACTIONS = {"left": 0.0, "bottom": 0.0, "center": 0.5, "right": 1.0, "top": 1.0}
LINE_LABEL_POSITIONS: list[LabelPosition] = [(0, 1, "center", "bottom"), (0, -1, "center", "top")]
MARKER_REACH_PT = 6.5  # from the middle of the largest marker


def place_labels(
    axes: Any, labels: list[Label], obstacles: list[Box], positions: list[LabelPosition] = LABEL_POSITIONS
) -> list[Box]:
    """Writes each label beside one of its points; returns the boxes they take.

    obstacles: data-space boxes (x0, y0, x1, y1) not to be covered, such as error bars and line segments, nor what is within
    MARKER_REACH_PT of them.
    """
    renderer = axes.get_figure().canvas.get_renderer()
    boxes, frame = [_pixels(axes, box) for box in obstacles], axes.get_window_extent(renderer)
    taken = []
    for text, color, points in labels:
        write = partial(_write, axes, text, color)
        tried = [
            (order + 3 * rank, point, place)
            for rank, point in enumerate(reversed(points))
            for order, place in enumerate(positions)
        ]
        width, height = _size(write(points[-1], positions[0]), renderer)
        costs = [bias + _cost(_box_beside(axes, point, place, width, height), frame, boxes) for bias, point, place in tried]
        _, point, place = tried[int(np.argmin(costs))]
        box = _extent(write(point, place), renderer)
        boxes.append(box)
        (x0, y0), (x1, y1) = axes.transData.inverted().transform([box[:2], box[2:]])
        taken.append((x0, y0, x1, y1))
    return taken


def _write(axes: Any, text: str, color: str, point: Point, place: LabelPosition) -> Any:
    dx, dy, ha, va = place
    return axes.annotate(
        text, point, (dx, dy), textcoords="offset points", ha=ha, va=va, color=color, fontsize=8.5, zorder=5
    )


def _extent(note: Any, renderer: Any) -> Box:
    extent = note.get_window_extent(renderer).padded(2)
    return extent.x0, extent.y0, extent.x1, extent.y1


def _size(note: Any, renderer: Any) -> tuple[float, float]:
    """Width and height of a trial label in pixels; removes it."""
    extent = note.get_window_extent(renderer)
    note.remove()
    return extent.width, extent.height


def _box_beside(axes: Any, point: Point, place: LabelPosition, width: float, height: float) -> Box:
    """The `_extent` of a label of that size beside a point."""
    dx, dy, ha, va = place
    (x, y), points = axes.transData.transform(point), axes.get_figure().dpi / 72
    x0, y0 = x + dx * points - ALIGNMENT_FRACTIONS[ha] * width, y + dy * points - ALIGNMENT_FRACTIONS[va] * height
    return x0 - 2, y0 - 2, x0 + width + 2, y0 + height + 2


def _cost(label_box: Box, frame: Any, boxes: list[Box]) -> float:
    """Square pixels that a label covers of `boxes`, and much more for those outside the axes, whose extent is `frame`."""
    x0, y0, x1, y1 = np.array(boxes).reshape(-1, 4).T
    width = np.minimum(x1, label_box[2]) - np.maximum(x0, label_box[0])
    height = np.minimum(y1, label_box[3]) - np.maximum(y0, label_box[1])
    return float((width.clip(0) * height.clip(0)).sum()) + 20 * _outside(label_box, frame)


def _pixels(axes: Any, box: Box) -> Box:
    (x0, y0), (x1, y1) = axes.transData.transform([(box[0], box[1]), (box[2], box[3])])
    reach = MARKER_REACH_PT * axes.get_figure().dpi / 72
    return min(x0, x1) - reach, min(y0, y1) - reach, max(x0, x1) + reach, max(y0, y1) + reach


def _outside(box: Box, frame: Any) -> float:
    """Square pixels of `box` outside the axes."""
    width, height = min(box[2], frame.x1) - max(box[0], frame.x0), min(box[3], frame.y1) - max(box[1], frame.y0)
    return float((box[2] - box[0]) * (box[3] - box[1]) - max(width, 0) * max(height, 0))


def segment_boxes(start: Point, end: Point, log_x: bool, pieces: int = 24) -> list[Box]:
    """Small boxes along a line between two data points (straight on a logarithmic x axis when `log_x`)."""
    x0, x1 = (np.log(start[0]), np.log(end[0])) if log_x else (start[0], end[0])
    xs, ys = np.linspace(x0, x1, pieces), np.linspace(start[1], end[1], pieces)
    xs = np.exp(xs) if log_x else xs
    return [(x, y, x, y) for x, y in zip(xs, ys, strict=True)]
