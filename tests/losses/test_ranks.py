"""The losses count over all ranks: two processes with half of the images each equal a process with all images."""

import pytest
from ranks import run_ranks

SCRIPT = """
import torch
from detector.core.distributed import process_group, rank, world_size
from detector.losses import CLASSIFICATION_LOSSES

generator = torch.Generator().manual_seed(0)
with process_group(torch.device("cpu")):
    images = slice(None) if world_size() == 1 else slice(2 * rank(), 2 * rank() + 2)
    for name, parameters in (
        ("ghm_c", {"momentum": 0.5}),
        ("ghm_c", {"momentum": 0.5, "scope": "level"}),
        ("focal", {"rescale": True}),
        ("equalized_focal", {"num_classes": 3}),
    ):
        loss = CLASSIFICATION_LOSSES.build(name, **parameters)
        for step in range(3):
            logits = torch.randn(4, 50, 3, generator=generator, dtype=torch.float64)
            labels = torch.randint(-1, 4, (4, 50), generator=generator)
            labels[1] = 3  # no foreground, and other scores, so that the counts of the halves differ
            logits[:2] *= 3
            print(float(loss(logits[images], labels[images], 7, level_sizes=(40, 10))))
"""


@pytest.mark.slow
def test_the_sum_of_the_ranks_equals_a_single_process():
    first, second = ([float(x) for x in output.split()] for output in run_ranks(SCRIPT, 2))
    single = [float(x) for x in run_ranks(SCRIPT, 1)[0].split()]
    assert len(single) == 12
    assert [a + b for a, b in zip(first, second, strict=True)] == pytest.approx(single, rel=1e-6)
