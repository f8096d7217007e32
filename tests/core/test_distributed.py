"""The process group after a restart by torchrun."""

import pytest
import torch.distributed as dist
from ranks import run_ranks

STARTED = """
import os, sys, time
import torch
from detector.core.distributed import process_group, rank, sum_over_ranks

if os.environ["RANK"] == sys.argv[1]:
    time.sleep(2)
with process_group(torch.device("cpu")):
    print(float(sum_over_ranks(torch.tensor(1.0 + rank()))), flush=True)
    os._exit(0)  # as after a kill, the store still has the address of this process
"""


@pytest.mark.slow
def test_restarted_processes_do_not_connect_to_killed_processes():
    """All starts share the store of torchrun, and each rank is late in one of the starts."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    agent = {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for late in (2, 0, 1):
        assert run_ranks(STARTED, 2, late, **agent) == ["3.0\n"] * 2
