"""What the losses count is counted over all ranks: two processes with half of the images each are one with all."""

import pytest
from ranks import run_ranks

SCRIPT = """
import torch
from detector.core.distributed import process_group, rank, world_size
from detector.losses import CLASSIFICATION_LOSSES

generator = torch.Generator().manual_seed(0)
with process_group(torch.device("cpu")):
    own = slice(None) if world_size() == 1 else slice(2 * rank(), 2 * rank() + 2)
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
            labels[1] = 3  # without foreground, and with other scores, so that the halves count differently
            logits[:2] *= 3
            print(float(loss(logits[own], labels[own], 7, level_sizes=(40, 10))))
"""


@pytest.mark.slow
def test_the_ranks_add_up_to_one_process():
    first, second = ([float(x) for x in said.split()] for said in run_ranks(SCRIPT, 2))
    whole = [float(x) for x in run_ranks(SCRIPT, 1)[0].split()]
    assert len(whole) == 12
    assert [a + b for a, b in zip(first, second, strict=True)] == pytest.approx(whole, rel=1e-6)
