"""The transform `mixup`, which shows two images over each other."""

import numpy as np

from detector.core.structures import Sample
from detector.core.validation import PositiveFloat, UnitFloat
from detector.data.pipeline.transforms.base import TRANSFORMS, OccasionalTransform, TransformContext
from detector.data.pipeline.transforms.pasting import move, paste, with_objects
from detector.data.pipeline.transforms.resize import resize


@TRANSFORMS.register("mixup")
class Mixup(OccasionalTransform):
    """A transform that mixes the image with another image: w a + (1 - w) b (Zhang et al. 2018).

    The weight w of the sample is drawn from Beta(alpha, alpha). The drawn image is resized, with its aspect ratio, to
    the largest size inside the sample, and has a random position in the sample. Outside the drawn image, the pixels of
    the sample are unchanged. The boxes of both images are kept, with their labels and their full weight in the loss
    (for detection: Zhang et al. 2019, "Bag of Freebies", and YOLOX, Ge et al. 2021). If the drawn image is the image of
    the sample, the sample is unchanged.

    When to use: against overfitting in long trainings, often after `mosaic`.

    Args:
        probability: the probability that a sample is changed.
        until: the fraction of the run after which no sample is changed.
        alpha: the parameter of the beta distribution. The mean weight is 0.5, and the standard deviation is
            1 / (2 sqrt(2 alpha + 1)). With 32 it is 0.06. With a small alpha, the objects of an image can be almost
            invisible.
    """

    def __init__(self, *, probability: UnitFloat = 0.15, until: UnitFloat = 0.9, alpha: PositiveFloat = 32.0):
        super().__init__(probability, until)
        self.alpha = alpha

    def change(self, sample: Sample, context: TransformContext) -> Sample:
        """Return the mixture of the sample and a drawn sample."""
        weight = context.rng.beta(self.alpha, self.alpha)
        other = context.draw()
        if other.image_id == sample.image_id:  # the mixture would have two equal boxes for each object
            return sample
        height, width = sample.image.shape[:2]
        h, w = other.image.shape[:2]
        zoom = min(height / h, width / w)
        h, w = max(1, min(height, round(h * zoom))), max(1, min(width, round(w * zoom)))
        other = resize(other, h, w)
        x, y = context.rng.integers((width - w + 1, height - h + 1)).tolist()
        image = sample.image.copy()
        paste(image, other.image, (x, y), np.full((h, w, 1), 1 - weight))
        return with_objects(sample, image, [sample, move(other, (x, y), (0, 0, width, height))])
