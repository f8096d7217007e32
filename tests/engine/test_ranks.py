"""A training or evaluation of several processes equals that of one process with all images."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from guides import write_examples
from ranks import REPO, Ended, end_ranks, environment, run_ranks
from tiny import TINY

from detector.engine.checkpoint import load_checkpoint

STEPS = """
import sys
import torch
from pathlib import Path
from detector.core.distributed import process_group, rank, world_size
from detector.engine.trainer import RANK_NUMBERS
from tiny import tiny_trainer
from dataclasses import replace

folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
SIZES = (
    *("train.batch_size=4", "data.train.num_images=16", "train.accumulation=2"),
    *("model.head.prior=0.1", "train.meter_every=1"),
)
single = tiny_trainer(folder, *SIZES)  # before the process group starts, so its loader has all images
torch.set_num_threads(1)
results = {}
with process_group(torch.device("cpu")):
    for case in sys.argv[2:]:
        trainer = tiny_trainer(folder, *SIZES, *case.split())
        gradients = []
        trainer.step.optimizer.register_step_pre_hook(
            lambda *_: gradients.append([p.grad.clone() for p in trainer.model.parameters() if p.grad is not None])
        )
        batches, rows = iter(single.loader), []
        for index in range(2):
            step = []
            for batch in (next(batches) for _ in range(trainer.settings.accumulation)):
                if index == 1:  # the images of the second rank have no objects
                    batch = replace(batch, labels=batch.labels.clone())
                    batch.labels[2:] = -1
                step.append(batch.split(world_size())[rank()])
            row = trainer.step(step)
            rows.append({name: value for name, value in row.items() if name not in RANK_NUMBERS})
        results[case] = {"gradients": gradients, "rows": rows, "weights": trainer.model.state_dict()}
    torch.save(results, folder / f"{world_size()}_{rank()}.pt")
"""
CASES = (
    "loss.classification=focal",
    "loss.classification=ghm_c loss.box=ghm_r",
    "loss.classification=equalized_focal loss.normaliser=ema",
    "loss.classification=focal loss.normaliser=image",
    "imports=[my_assigner] assigner=best_fits loss.classification=quality_focal",  # needs predictions
    "assigner=task_aligned loss.classification=quality_focal loss.box_rows=quality",
    "assigner=sim_ota loss.classification=focal",
    "assigner=soft_label loss.classification=varifocal",
    # a higher rate makes the rounding of the first step visible: sides near 0 are on different sides of the ReLU
    "model.head.type=points model.head.depth=1 assigner=atss loss.box_rows=score train.accumulation=1 train.lr=1e-5",
    "model.head.type=points model.head.depth=1 model.head.activation=exp model.head.one_to_one=true "
    "assigner=task_aligned loss.classification=equalized_focal loss.normaliser=ema train.accumulation=1",
)


@pytest.mark.slow
def test_two_ranks_with_b_images_have_the_gradients_of_one_rank_with_2b_images(tmp_path: Path):
    """In the second step, the second rank has no objects."""
    write_examples(tmp_path)
    for num_ranks in (1, 2):
        run_ranks(STEPS, num_ranks, tmp_path, *CASES)
    single, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    for case in CASES:
        for step in range(2):
            row = single[case]["rows"][step]
            # a one-to-one head has a foreground prior for each object, which counts with its quality
            assert row["num_fg"] > (3 if "one_to_one" in case else 4) and row["P3/loss_share_fg"] > 0
            for name, value in row.items():
                atol = 3 if name.startswith("gradient_norm_") else 1e-6  # rounding can move an element to the next bin
                for of_rank in (first, second):
                    actual, where = of_rank[case]["rows"][step][name], f"{case}, step {step}, {name}: "
                    torch.testing.assert_close(actual, value, rtol=2e-5, atol=atol, msg=where.__add__)
            scale = max(float(g.abs().max()) for g in single[case]["gradients"][step])
            for expected, *others in zip(*(x[case]["gradients"][step] for x in (single, first, second)), strict=True):
                assert torch.equal(*others)
                assert (others[0] - expected).abs().max() < 1e-4 * scale  # the order of the sums differs
        for name, value in first[case]["weights"].items():
            assert torch.equal(value, second[case]["weights"][name]), name


EVALUATION = """
import hashlib, json, sys
import torch
from pathlib import Path
from detector.build import build_dataset, build_evaluation, build_trained_model
from detector.core.distributed import process_group, rank
from tiny import tiny_config

torch.set_num_threads(1)
config = tiny_config(
    Path(sys.argv[1]), "data.val.num_images=11", "evaluation.batch_size=2", "model.head.prior=0.3", "data.short_side=50"
)
val = build_dataset(config, "val")
model = build_trained_model(config, val)
with process_group(torch.device("cpu")):
    metrics, detections = build_evaluation(config, val, torch.device("cpu"), torch.float32)(model)
    print(json.dumps({"rank": rank(), "metrics": metrics.to_json(), "detections": detections}))
"""


@pytest.mark.slow
def test_an_evaluation_gives_the_same_numbers_on_any_number_of_ranks(tmp_path: Path):
    """With eleven images in batches of two, the ranks have different numbers of images."""
    single = json.loads(run_ranks(EVALUATION, 1, tmp_path)[0])
    assert len(single["detections"]) == 1100 and len({d["image_id"] for d in single["detections"]}) == 11
    assert 0 < single["metrics"]["AR100"] < 1
    for num_ranks in (2, 3):
        first, *others = map(json.loads, run_ranks(EVALUATION, num_ranks, tmp_path))
        assert first["detections"] == single["detections"]
        assert [result["rank"] for result in (first, *others)] == list(range(num_ranks))
        for result in (first, *others):
            assert json.dumps(result["metrics"]) == json.dumps(single["metrics"])  # as text, because NaN != NaN
        assert all(result["detections"] == [] for result in others)


PAIR = """
import math, os, sys
import torch
from itertools import chain
from pathlib import Path
from detector.core.distributed import process_group, rank
from detector.engine.checkpoint import load_checkpoint
from detector.engine.refusals import RefusedStep
from detector.core.errors import UserError
from detector.losses.smooth_l1 import SmoothL1Loss
from runs import make_trainer, watch_steps

torch.set_num_threads(1)
out, results = Path(sys.argv[1]), {}
weights = lambda trainer: {name: value.clone() for name, value in trainer.model.state_dict().items()}
reduced, all_reduce = [], torch.distributed.all_reduce


def counting(tensor, *arguments, **keywords):
    reduced.append(tensor.numel())
    return all_reduce(tensor, *arguments, **keywords)


torch.distributed.all_reduce = counting


class Bad(SmoothL1Loss):
    # multiplies a call on rank 1 by a factor

    def __init__(self, call, factor):
        super().__init__()
        self.calls, self.factor = iter(range(100)), (lambda n: factor if rank() == 1 and n == call else 1)

    def forward(self, *arguments):
        return super().forward(*arguments) * self.factor(next(self.calls))


ids = lambda step: [list(batch.image_ids) for batch in step]
alone = make_trainer(out / f"alone{os.environ['RANK']}", "train.accumulation=2")
for step in alone.batches(0):
    if alone.steps_done == 2:
        break
    alone.step(step)
alone.save("last")
results["all"] = [ids(step) for step in chain(alone.batches(0, offset=2), alone.batches(1))]

with process_group(torch.device("cpu")):
    resumed = make_trainer(out / "resumed", "train.accumulation=2")
    checkpoint = out / f"alone{rank()}/checkpoints/last.pt"
    resumed.resume(load_checkpoint(checkpoint), checkpoint)
    results["seen"] = []
    watch_steps(resumed, lambda batches: results["seen"].append(ids(batches)))
    resumed.train()

    for precision, accumulation in (("bf16", 1), ("bf16", 3), ("fp16", 2)):
        trainer = make_trainer(out / precision, f"train.precision={precision}", f"train.accumulation={accumulation}")
        if precision == "fp16":
            trainer.step.scaler.load_state_dict(trainer.step.scaler.state_dict() | {"scale": 1024.0})
            trainer.criterion.boxes[0] = Bad(2, math.inf)  # the second step halves the scale
        start, sizes = weights(trainer), []
        for step in list(trainer.batches(0))[:2]:
            reduced.clear()
            trainer.step(step)
            sizes.append(list(reduced))
        results[precision, accumulation] = {
            "start": start,
            "weights": weights(trainer),
            "sizes": sizes,
            "trained": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
            "scale": trainer.step.scaler.get_scale(),
        }

    trainer = make_trainer(out / "stop", "train.accumulation=2")
    start, trainer.criterion.boxes[0] = weights(trainer), Bad(0, math.nan)
    logits = []
    trainer.model.register_forward_hook(lambda model, images, predictions: logits.append(predictions.logits.detach()))
    try:
        trainer.train()
    except RefusedStep:
        results["stop"] = {"start": start, "weights": weights(trainer)}
    results["stop"] |= {"low": float(torch.cat(logits).min()), "high": float(torch.cat(logits).max())}
    results["stop"]["ids"] = ids(next(make_trainer(out / "again").batches(0)))

    trainer = make_trainer(out / "skip", "train.epochs=1", "faults.bad_step=skip")
    trainer.criterion.boxes[0] = Bad(3, math.inf)
    trainer.train()
    results["skip"] = weights(trainer)

    try:
        make_trainer(out / "sync", "model.backbone.norm=sync")
    except UserError as error:
        results["sync"] = str(error)
torch.save(results, out / f"{os.environ['RANK']}.pt")
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, dict]:
    """Return the folder of the runs of two processes, and the results of each process."""
    folder = tmp_path_factory.mktemp("pair")
    run_ranks(PAIR, 2, folder)
    return folder, *(torch.load(folder / f"{rank}.pt") for rank in range(2))


@pytest.mark.slow
def test_a_run_of_one_process_resumes_in_two_with_the_same_images_in_order(pair: tuple[Path, dict, dict]):
    _, first, second = pair
    assert len(first["all"]) == 4 and first["all"] == second["all"]
    seen = [[a + b for a, b in zip(*steps, strict=True)] for steps in zip(first["seen"], second["seen"], strict=True)]
    assert seen == first["all"]


@pytest.mark.slow
def test_ranks_in_half_precision_have_equal_weights_and_accumulated_batches_share_an_all_reduce(
    pair: tuple[Path, dict, dict],
):
    _, first, second = pair
    for case in (("bf16", 1), ("bf16", 3), ("fp16", 2)):
        a, b = first[case], second[case]
        assert_same_weights({"model": a["weights"]}, {"model": b["weights"]})
        assert any(not torch.equal(value, a["start"][name]) for name, value in a["weights"].items())
        assert a["scale"] == b["scale"] == (512 if case[0] == "fp16" else 1)
        for sizes in (*a["sizes"], *b["sizes"]):
            gradients = [size for size in sizes if size > 1000]
            assert sum(gradients) == a["trained"] and len(gradients) <= 2  # an all-reduce for each bucket


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_stops_all_ranks_and_each_writes_a_record(pair: tuple[Path, dict, dict]):
    folder, *results = pair
    for rank, of_rank in enumerate(results):
        stop = of_rank["stop"]
        assert_same_weights({"model": stop["weights"]}, {"model": stop["start"]})
        record = json.loads((folder / f"stop/refused/step_0_rank_{rank}.json").read_text())
        numbers = {name: float(value) for name, value in record["numbers"].items()}
        assert math.isnan(numbers["loss"]) and math.isnan(numbers["rank_loss"]) == (rank == 1)
        assert record["image_ids"] == list(chain.from_iterable(stop["ids"])) and len(stop["ids"]) == 2
        assert (numbers["logit_min"], numbers["logit_max"]) == pytest.approx((stop["low"], stop["high"]), rel=1e-6)
    assert results[0]["stop"]["ids"] != results[1]["stop"]["ids"]


@pytest.mark.slow
def test_a_step_that_one_rank_refuses_is_skipped_by_all_ranks(pair: tuple[Path, dict, dict]):
    folder, first, second = pair
    assert_same_weights({"model": first["skip"]}, {"model": second["skip"]})
    with (folder / "skip/metrics.csv").open(newline="") as file:
        assert [float(row["refused"]) for row in csv.DictReader(file)] == [0, 1, 0]
    assert {path.name for path in (folder / "skip/refused").iterdir()} == {
        f"step_1_rank_{rank}.json" for rank in (0, 1)
    }


@pytest.mark.slow
def test_shared_statistics_without_gpus_are_refused(pair: tuple[Path, dict, dict]):
    for of_rank in pair[1:]:
        assert of_rank["sync"].startswith("model.backbone.norm: ") and "\n" not in of_rank["sync"]


RUN = ("train.epochs=2", "train.batch_size=2", "train.accumulation=2", "train.save_every=1", "train.lr=0.01")
FAULTY = """
import os, signal
from pathlib import Path
from detector.losses.smooth_l1 import SmoothL1Loss
from detector.losses.base import BOX_LOSSES

@BOX_LOSSES.register("faulty")
class Faulty(SmoothL1Loss):
    calls = 0

    def forward(self, *arguments):
        Faulty.calls += 1
        marker = Path(os.environ["MARKER"])
        if Faulty.calls == 7 and os.environ["RANK"] == "1" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.Signals[os.environ["SIGNAL"]])
        return super().forward(*arguments)
"""


FILES = ["batch_0.jpg", "config.yaml", "curves.png", "detections.json", "evaluations.csv", "labels.png"]
FILES += ["metrics.csv", "metrics.json", "parts.csv"]


def prepare(folder: Path, out: str, number: str = "SIGKILL") -> tuple[list[object], dict[str, str]]:
    """Return the options and variables of a training whose rank 1 sends itself a signal in its fourth step.

    Rank 1 sends the signal only if the marker file does not exist.
    """
    (folder / "faulty.py").write_text(FAULTY)
    with_loss = TINY.replace("imports: [", "imports: [faulty, ") + "loss: {box: faulty}\n"
    (folder / "tiny.yaml").write_text(with_loss)
    options = ["--cfg", folder / "tiny.yaml", "--out", folder / out, "--resume", "auto", *RUN]
    variables = environment(MARKER=str(folder / f"{out}.marker"), SIGNAL=number, XDG_CACHE_HOME=str(folder / "cache"))
    return options, variables | {"PYTHONPATH": os.pathsep.join((variables["PYTHONPATH"], str(folder)))}


def train(folder: Path, out: str, num_ranks: int = 2, number: str = "SIGKILL") -> list[Ended]:
    """Run the prepared training in forks, and return the end of each rank."""
    options, variables = prepare(folder, out, number)
    return end_ranks("from detector.cli import main; main()", num_ranks, "train", *options, **variables)


def codes(ended: list[Ended]) -> list[int]:
    return [rank.code for rank in ended]


def steps_of(folder: Path) -> list[int]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "whole.marker").touch()
    assert codes(train(folder, "whole")) == [0, 0]
    assert steps_of(folder / "whole") == list(range(6))
    assert json.loads((folder / "whole/metrics.json").read_text())["AR100"] >= 0
    files = [path.relative_to(folder / "whole") for path in (folder / "whole").rglob("*") if path.is_file()]
    names = sorted(path.name for path in files if path.parent == Path())
    assert [name for name in names if "events" not in name] == FILES and len(names) == len(
        FILES
    ) + 1  # only rank 0 writes an event file
    assert sorted(path.name for path in files if path.parent.name == "checkpoints") == [
        "best.pt",
        "last.1.pt",
        "last.pt",
    ]
    return load_checkpoint(folder / "whole/checkpoints/last.pt")


@pytest.fixture(scope="module")
def signalled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run whose rank 1 received SIGTERM in its fourth step."""
    folder = tmp_path_factory.mktemp("signalled")
    assert codes(train(folder, "stopped", number="SIGTERM")) == [143, 143]
    assert load_checkpoint(folder / "stopped/checkpoints/last.pt")["training"]["steps_done"] == 4
    return folder


def assert_same_weights(a: dict, b: dict) -> None:
    for name, value in a["model"].items():
        assert torch.equal(value, b["model"][name]), name


@pytest.mark.slow
def test_a_killed_rank_restarts_from_the_last_checkpoint_and_ends_with_the_same_weights(
    undisturbed: dict, tmp_path: Path
):
    options, variables = prepare(tmp_path, "killed")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    command = [sys.executable, *torchrun, REPO / "tools/train.py", *options]
    assert subprocess.run(command, env=variables, timeout=300, check=False).returncode == 0
    assert (tmp_path / "killed.marker").exists()
    assert steps_of(tmp_path / "killed") == list(range(6))
    assert_same_weights(undisturbed, load_checkpoint(tmp_path / "killed/checkpoints/last.pt"))


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_ranks_after_a_step_and_the_resumed_run_has_the_same_weights(
    undisturbed: dict, signalled: Path, tmp_path: Path
):
    shutil.copytree(signalled, tmp_path, dirs_exist_ok=True)
    assert codes(train(tmp_path, "stopped")) == [0, 0]
    assert steps_of(tmp_path / "stopped") == list(range(6))
    assert_same_weights(undisturbed, load_checkpoint(tmp_path / "stopped/checkpoints/last.pt"))


@pytest.mark.slow
def test_another_number_of_processes_resumes_with_the_same_images_and_a_warning(
    undisturbed: dict, signalled: Path, tmp_path: Path
):
    shutil.copytree(signalled, tmp_path, dirs_exist_ok=True)
    (ended,) = train(tmp_path, "stopped", num_ranks=1)
    assert ended.code == 0
    (warning,) = (line for line in ended.errors.splitlines() if "2 processes" in line)
    assert "last.pt" in warning and "1 processes" in warning
    assert steps_of(tmp_path / "stopped") == list(range(6))
    resumed = load_checkpoint(tmp_path / "stopped/checkpoints/last.pt")
    for name, value in undisturbed["model"].items():
        torch.testing.assert_close(resumed["model"][name], value, rtol=1e-3, atol=1e-5)
