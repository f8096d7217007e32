"""Functions that write and read videos with OpenCV."""

from pathlib import Path

import cv2
import numpy as np


def write_video(
    path: Path,
    num_frames: int,
    *,
    size: tuple[int, int] = (48, 64),
    rate: float = 25,
    codec: str = "MJPG",
    frames: np.ndarray | None = None,
) -> None:
    """Write RGB frames (N, H, W, 3), or frames of a single color: blue, plus 20 i of red in frame i."""
    height, width = size
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, (width, height))
    assert writer.isOpened()
    for i in range(num_frames):
        frame = np.full((height, width, 3), (min(20 * i, 255), 0, 200), np.uint8) if frames is None else frames[i]
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()


def read_video(path: Path) -> list[np.ndarray]:
    """Return the frames in RGB."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    capture.release()
    return frames
