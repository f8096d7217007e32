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
    os._exit(0)  # as one that is killed, and leaves in the store where it listened
"""


@pytest.mark.slow
def test_processes_started_again_do_not_look_for_those_that_ended():
    """With torchrun's store, which outlives them, and either rank late."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    agent = {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for late in (2, 0, 1):
        assert run_ranks(STARTED, 2, late, **agent) == ["3.0\n"] * 2
