"""Pictures through a detector into sinks, a batch at a time."""

import logging
import time
from collections.abc import Sequence
from itertools import islice, takewhile

from detector.core.errors import Interrupted, UserError
from detector.deploy.inference.sinks import Sink
from detector.deploy.inference.sources import Source, read_pictures
from detector.deploy.predict import Detector
from detector.engine.interrupt import Interrupt

log = logging.getLogger(__name__)
FRAMES_PER_LINE = 100


def run(
    detector: Detector,
    sources: Sequence[Source],
    sinks: Sequence[Sink],
    *,
    classes: Sequence[str] | None,
    max_frames: int | None,
) -> None:
    """Until the sources end or a signal comes; the memory is that of a batch. What was found is kept in any case.

    Raises Interrupted, or UserError at the end where a source was left out.
    """
    left_out: dict[Source, dict[str, None]] = {}  # the lines of each source, each once

    def leave_out(source: Source, error: UserError) -> None:
        left_out.setdefault(source, {})[str(error)] = None

    num_pictures, started = 0, time.perf_counter()
    try:
        with Interrupt() as interrupt:
            pictures = read_pictures(sources, max_frames, leave_out, detector.bits)
            pictures = takewhile(lambda _: interrupt.exit_code is None, pictures)
            while batch := list(islice(pictures, detector.config.evaluation.batch_size)):
                detections = detector.predict([picture.image for picture in batch], classes=classes)
                for picture, found in zip(batch, detections, strict=True):
                    for sink in sinks:
                        try:
                            sink.write(picture, found)
                        except UserError as error:  # the picture itself is what a sink cannot take
                            leave_out(picture.source, error)
                    if picture.frame is None:
                        log.info("%s: %d objects", picture.source, len(found.boxes))
                    elif picture.frame % FRAMES_PER_LINE == 0:
                        log.info("%s: frame %d, %d objects", picture.source, picture.frame, len(found.boxes))
                num_pictures += len(batch)
    finally:
        for sink in sinks:
            sink.close()
    rate = num_pictures / (time.perf_counter() - started)
    log.info("%d pictures, %.1f images/s (reading, detecting, drawing and writing)", num_pictures, rate)
    lines = "; ".join(line for of_source in left_out.values() for line in of_source)
    problem = f"{len(left_out)} of {len(sources)} inputs left out, whole or in part: {lines}"
    if interrupt.exit_code is not None:
        if left_out:
            log.warning(problem)
        raise Interrupted(interrupt.exit_code)
    if left_out:
        raise UserError(problem)
