"""What the losses count is counted over all ranks: two processes with half of the images each are one with all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from detector.losses import CLASSIFICATION_LOSSES

rendezvous, rank, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if ranks > 1:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
generator = torch.Generator().manual_seed(0)
own = slice(None) if ranks == 1 else slice(2 * rank, 2 * rank + 2)
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


def start(rendezvous: Path, rank: int, ranks: int) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(rendezvous), str(rank), str(ranks)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # a host name that does not resolve is no matter
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], env=environment)


@pytest.mark.slow
def test_the_ranks_add_up_to_one_process(tmp_path: Path):
    processes = [start(tmp_path / "rendezvous", 0, 2), start(tmp_path / "rendezvous", 1, 2), start(tmp_path, 0, 1)]
    first, second, whole = ([float(x) for x in p.communicate(timeout=300)[0].split()] for p in processes)
    assert [p.returncode for p in processes] == [0, 0, 0] and len(whole) == 12
    assert [a + b for a, b in zip(first, second, strict=True)] == pytest.approx(whole, rel=1e-6)
