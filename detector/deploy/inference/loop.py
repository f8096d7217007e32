"""Run a detector on the pictures of sources, batch by batch, and write the detections to sinks."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice, takewhile

from detector.core.errors import Interrupted, UserError, one_line
from detector.core.structures import Detections
from detector.core.wording import counted
from detector.deploy.inference.sinks import Sink
from detector.deploy.inference.sources import Source, read_pictures
from detector.deploy.predict import Detector
from detector.engine.interrupt import Interrupt

log = logging.getLogger(__name__)
FRAMES_PER_LINE = 100
LOWEST_SCORE = 0.05  # lower detections are not computed, because their number can be large


def run(
    detector: Detector,
    sources: Sequence[Source],
    sinks: Sequence[Sink],
    *,
    classes: Sequence[str] | None,
    max_frames: int | None,
) -> None:
    """Process all pictures until the sources end or a signal arrives.

    Only the pictures of a batch are in memory. The detections of processed pictures are written also after an error.

    Args:
        detector: the detector. The batch size is `evaluation.batch_size` of its config, and the lowest score is
            `evaluation.score_threshold`.
        sources: the pictures.
        sinks: receive each picture with its detections.
        classes: the names of the classes to detect, or None for all classes.
        max_frames: the largest number of frames of each video and camera, or None.

    Raises:
        Interrupted: a signal arrived.
        UserError: a source could not be processed, or only in part. The other sources were processed first.
    """
    failures: dict[Source, dict[str, None]] = {}  # the messages of each source, without repetitions

    def add_failure(source: Source, error: UserError) -> None:
        failures.setdefault(source, {})[str(error)] = None

    threshold = detector.config.evaluation.score_threshold
    lowest = min(threshold, LOWEST_SCORE)
    num_pictures, started = 0, time.perf_counter()
    try:
        with Interrupt() as interrupt:
            pictures = read_pictures(sources, max_frames, add_failure, detector.bits)
            pictures = takewhile(lambda _: interrupt.exit_code is None, pictures)
            while batch := list(islice(pictures, detector.config.evaluation.batch_size)):
                images = [picture.image for picture in batch]
                candidates = detector.predict(images, classes=classes, score_threshold=lowest)
                for picture, of_picture in zip(batch, candidates, strict=True):
                    detections = _above(of_picture, threshold)
                    for sink in sinks:
                        try:
                            sink.write(picture, detections)
                        except UserError as error:  # the sink cannot write this picture
                            add_failure(picture.source, error)
                    if picture.frame is None or picture.frame % FRAMES_PER_LINE == 0:
                        frame = "" if picture.frame is None else f"frame {picture.frame}, "
                        text = _describe(detections, of_picture, detector.class_names, threshold, lowest)
                        log.info("%s: %s%s", picture.source, frame, text)
                num_pictures += len(batch)
    finally:
        for sink in sinks:
            sink.close()
    rate = num_pictures / (time.perf_counter() - started)
    log.info("%s, %.1f pictures/s (reading, detecting, drawing and writing)", counted(num_pictures, "picture"), rate)
    messages = "; ".join(message for of_source in failures.values() for message in of_source)
    problem = f"{len(failures)} of {len(sources)} inputs were not processed completely: {messages}"
    if interrupt.exit_code is not None:
        if failures:
            log.warning(problem)
        raise Interrupted(interrupt.exit_code)
    if failures:
        raise UserError(problem)


def _above(detections: Detections, threshold: float) -> Detections:
    """Return the detections with a score above the threshold. A NaN counts as above, as in the post-processing."""
    is_above = ~(detections.scores <= threshold)
    return Detections(detections.boxes[is_above], detections.scores[is_above], detections.labels[is_above])


def _describe(
    detections: Detections, candidates: Detections, class_names: Sequence[str], threshold: float, lowest: float
) -> str:
    """Return the number of objects with each class, or for a picture without objects the highest score."""
    if len(detections.scores):
        by_class = Counter(class_names[label] for label in detections.labels.tolist()).most_common()
        names = ", ".join(f"{one_line(name)} {count}" for name, count in by_class)
        return f"{counted(len(detections.scores), 'object')} ({names})"
    scores = candidates.scores
    highest = f"the highest score is {scores[0]:.3f}" if len(scores) else f"no score is above {lowest:g}"
    return f"0 objects with a score above {threshold:g} (set by --score); {highest}"
