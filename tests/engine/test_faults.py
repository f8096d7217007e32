"""Tests of faults in long trainings: kills, full disks, refused steps, too little memory, dead workers, bad images."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import environment
from runs import assert_same, first_batches, make_trainer, rows_of, watch_steps
from tiny import TINY
from tools_run import run_tool

from detector.core.errors import UserError
from detector.data.images import write_image
from detector.engine.checkpoint import load_checkpoint, newest_intact
from detector.engine.outcome import load_evaluation
from detector.engine.refusals import MAX_REFUSED, RefusedStep
from detector.engine.trainer import Trainer
from detector.losses.base import BoxLoss
from detector.losses.smooth_l1 import SmoothL1Loss

KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from runs import make_trainer
from detector.engine.checkpoint import load_checkpoint, newest_intact

OPTIONS = (
    *("train.epochs=12", "train.accumulation=1", "train.ema_decay=0.9", "train.lr=0.001", "train.evaluate_every=20"),
    *("model.levels=[3, 3]", "model.head.sizes=[[12, 26]]"),  # a quarter of the weights: most of the time is saving
)
folder, rng = Path(sys.argv[1]), random.Random(0)


def die_in(name: str, call: int) -> None:
    # between the write of the temporary file and its renames, and between two renames
    function, calls = getattr(os, name), iter(range(1, 10**6))

    def call_or_die(*arguments, **keywords):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)

    setattr(os, name, call_or_die)


def train(out: Path, save_every: int, starts: list, fault: tuple | None = None) -> int:
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os.close(1)
        trainer = make_trainer(out, *OPTIONS, f"train.save_every={save_every}")
        checkpoint = newest_intact(out / "checkpoints/last.pt")
        if checkpoint is not None:
            trainer.resume(load_checkpoint(checkpoint), checkpoint)
        os.write(starts[1], f"{trainer.steps_done}\\n".encode())
        if fault is not None:
            die_in(*fault)
        trainer.train()
        os._exit(0)
    return child


def damage(path: Path) -> None:
    with path.open("rb+") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def step_of(path: Path | None) -> int:
    return 0 if path is None else torch.load(path, mmap=True)["training"]["steps_done"]


pipe = os.pipe()
reader = os.fdopen(pipe[0])
assert os.waitpid(train(folder / "whole", 0, pipe), 0)[1] == 0
starts = [int(reader.readline())]
last = folder / "killed/checkpoints/last.pt"
endings, intact_steps, num_damages = [], [], 0
for kill in range(12):
    fault = None if rng.random() < 0.5 else (rng.choice(("fsync", "replace")), rng.randint(1, 8))
    if kill % 3 == 2 and last.exists() and last.with_name("last.1.pt").exists():
        damage(last)  # and die during the renames of the next save, after the rename of metrics.csv
        num_damages += 1
        fault = "replace", 2 + kill // 3 % 2
    intact_steps.append(step_of(newest_intact(last)))
    child = train(folder / "killed", 1, pipe, fault)
    starts.append(int(reader.readline()))  # waits until the run starts
    if fault is None:
        time.sleep(rng.uniform(0, 0.6))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    unfinished = last.with_name("last.pt.tmp").exists()
    endings.append([os.WIFSIGNALED(status), unfinished, newest_intact(last) is not None])
intact_steps.append(step_of(newest_intact(last)))
assert os.waitpid(train(folder / "killed", 1, pipe), 0)[1] == 0
starts.append(int(reader.readline()))
result = {"endings": endings, "intact_steps": intact_steps, "num_damages": num_damages, "starts": starts}
print(json.dumps(result))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_twelve_times_ends_with_the_same_weights(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path)], env=environment(), stdout=subprocess.PIPE, text=True, check=True
    )
    result = json.loads(done.stdout)
    num_killed, num_unfinished, num_intact = (sum(column) for column in zip(*result["endings"], strict=True))
    assert num_killed >= 9  # a fast machine reaches the end of the run earlier
    assert num_unfinished >= 2  # kills during a save
    has_intact = [has_intact for _, _, has_intact in result["endings"]]
    assert has_intact == sorted(has_intact)  # after the first intact checkpoint, an intact checkpoint always exists
    assert num_intact >= 8
    starts, intact_steps = result["starts"][1:], result["intact_steps"]  # the first start is that of the other run
    assert starts[-1] == intact_steps[-1] > 2
    assert set(starts) <= set(intact_steps), "a run did not resume from the newest intact checkpoint"
    differences = [b - a for a, b in pairwise(intact_steps)]
    num_losses = sum(difference < 0 for difference in differences)
    assert result["num_damages"] >= 2 and num_losses <= result["num_damages"] and min(differences) >= -3
    a, b = (load_checkpoint(tmp_path / run / "checkpoints/last.pt") for run in ("whole", "killed"))
    assert a["training"]["steps_done"] == 72
    assert_same(b["training"], a["training"])
    assert_same(dict(b["model"]), dict(a["model"]))
    rows, expected = rows_of(tmp_path / "killed"), rows_of(tmp_path / "whole")
    assert [row | {"images_per_s": 0} for row in rows] == [row | {"images_per_s": 0} for row in expected]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 5 MB. A checkpoint of the run below has 2.9 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def train_tiny(folder: Path, out: Path, *overrides: str) -> int:
    (folder / "tiny.yaml").write_text(TINY)
    options = "train.epochs=2", "train.save_every=2", "train.log_every=1", "train.keep_checkpoints=1"
    return run_tool("train", "--cfg", folder / "tiny.yaml", "--out", out, "--resume", "auto", *options, *overrides)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_and_a_read_only_one(small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert train_tiny(tmp_path, tmp_path / "whole") == 0
    run = small_disk / "run"
    capsys.readouterr()
    assert train_tiny(tmp_path, run) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "no space left on device" in error.lower()
    assert "--resume auto" in error
    last = run / "checkpoints/last.pt"
    assert newest_intact(last) == last and load_checkpoint(last)["training"]["steps_done"] == 2

    remount(small_disk, "ro")
    assert train_tiny(tmp_path, run) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "read-only file system" in error.lower()
    assert newest_intact(last) == last

    remount(small_disk, "rw,size=400m")
    assert train_tiny(tmp_path, run) == 0
    a, b = (load_checkpoint(out / "checkpoints/last.pt") for out in (tmp_path / "whole", run))
    assert_same(b["training"], a["training"])
    assert len(rows_of(run)) == len(rows_of(tmp_path / "whole")) == 12


# ---- refused steps


class FaultyLoss(SmoothL1Loss):
    """The smooth L1 loss, multiplied by a factor in some of its calls."""

    def __init__(self, factor: float, calls: set[int]):
        super().__init__()
        self.factor = factor
        self.calls = calls
        self.num_calls = 0

    def forward(self, *arguments):
        factor = self.factor if self.num_calls in self.calls else 1
        self.num_calls += 1
        return super().forward(*arguments) * factor


def faulty(folder: Path, factor: float, steps: set[int], *overrides: str) -> Trainer:
    trainer = make_trainer(folder, "train.accumulation=1", "train.epochs=6", "train.evaluate_every=0", *overrides)
    trainer.criterion.boxes[0] = FaultyLoss(factor, steps)
    return trainer


def test_stop_ends_the_run_with_a_record_and_unchanged_weights(tmp_path: Path):
    trainer = faulty(tmp_path, math.nan, {3}, "train.save_every=3")
    with pytest.raises(RefusedStep, match=r"^step 3: .*train\.lr.*faults\.bad_step") as error:
        trainer.train()
    record = json.loads((tmp_path / "refused/step_3_rank_0.json").read_text())
    batch = first_batches(make_trainer(tmp_path / "other", "train.accumulation=1"), 4)[3]
    assert record["image_ids"] == list(batch.image_ids) and record["file_names"] == list(batch.file_names)
    assert all(name in str(error.value) for name in batch.file_names) and "\n" not in str(error.value)
    numbers = {name: float(value) for name, value in record["numbers"].items()}
    assert math.isnan(numbers["loss"]) and math.isnan(numbers["box"]) and numbers["cls"] > 0
    assert numbers["logit_min"] < numbers["logit_max"] < 0  # near the logit of the prior
    saved = load_checkpoint(tmp_path / "checkpoints/last.pt")
    assert saved["training"]["steps_done"] == 3
    assert_same(dict(saved["model"]), dict(trainer.model.state_dict()))
    assert [int(row["step"]) for row in rows_of(tmp_path)] == [0, 1, 2, 3]


@pytest.mark.parametrize("delay", [0, 2])
def test_a_skipped_step_changes_nothing(delay: int, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    trainer = faulty(
        tmp_path / "skip", math.inf, {3, 4}, "faults.bad_step=skip", "model.backbone.norm=batch", "train.epochs=1"
    )
    trainer.readback.delay = delay
    trainer.train()
    refused = [int(float(row["refused"])) for row in rows_of(tmp_path / "skip")]
    assert refused == [0, 0, 0, 1, 1, 0]
    warnings = [record.message for record in caplog.records if record.name == "detector.engine.refusals"]
    assert [line.partition(":")[0] for line in warnings] == ["step 3", "step 4"]
    assert {path.name for path in (tmp_path / "skip/refused").iterdir()} == {f"step_{i}_rank_0.json" for i in (3, 4)}

    other = make_trainer(tmp_path / "by hand", "train.accumulation=1", "model.backbone.norm=batch", "train.epochs=1")
    for step, batch in enumerate(first_batches(other, 6)):
        if step in (3, 4):
            other.step.steps_done += 1
        else:
            other.step([batch])
    assert_same(dict(trainer.model.state_dict()), dict(other.model.state_dict()))


def test_too_many_refused_steps_in_a_row_stop_the_run(tmp_path: Path):
    trainer = faulty(tmp_path, math.nan, set(range(2, 99)), "faults.bad_step=skip")
    with pytest.raises(RefusedStep, match=f"step {2 + MAX_REFUSED}: .*{MAX_REFUSED} refused"):
        trainer.train()


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_loss_far_above_its_mean_is_refused(policy: str, tmp_path: Path):
    options = (f"faults.bad_step={policy}", "faults.spike_factor=20", "train.lr=1e-4")
    trainer = faulty(tmp_path, 1000.0, {5, 30}, *options)  # at step 5, the mean is not yet reliable
    if policy == "stop":
        with pytest.raises(RefusedStep, match=r"step 30: .*\b20 times"):
            trainer.train()
    else:
        trainer.train()
    refused = [int(row["step"]) for row in rows_of(tmp_path) if float(row["refused"])]
    assert refused == [30] and (tmp_path / "refused/step_30_rank_0.json").exists()
    assert trainer.step.guard.steps == (30 if policy == "stop" else 35)


# ---- memory


class Greedy(BoxLoss):
    """Allocates a petabyte if there is more than one image."""

    def __init__(self, loss: BoxLoss):
        super().__init__()
        self.loss = loss

    def forward(self, predicted, *arguments):
        if len(predicted) > 1:
            torch.empty(2**50, dtype=torch.uint8)
        return self.loss(predicted, *arguments)


def test_out_of_memory_stops_with_the_shape_and_the_remedy(tmp_path: Path):
    trainer = make_trainer(tmp_path)
    trainer.criterion.boxes[0] = Greedy(trainer.criterion.boxes[0])
    with pytest.raises(UserError, match=r"^step 0: .*\b2 images of \[3, 64, 64\]") as error:
        trainer.train()
    assert "\n" not in str(error.value)
    assert "train.batch_size" in error.value.remedy and "faults.out_of_memory=halve" in error.value.remedy


def test_a_step_of_halved_batches_equals_the_step_of_the_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    options = ("faults.out_of_memory=halve", "train.batch_size=4", "train.accumulation=1", "train.epochs=1")
    halved, whole = (make_trainer(tmp_path / name, *options) for name in ("halved", "whole"))
    halved.criterion.boxes[0] = Greedy(halved.criterion.boxes[0])
    for trainer in (halved, whole):
        trainer.train()
    warnings = [record for record in caplog.records if record.name == "detector.engine.step"]
    assert halved.step.num_parts == 4 and len(warnings) == 2
    assert [row["num_fg"] for row in rows_of(tmp_path / "halved")] == [r["num_fg"] for r in rows_of(tmp_path / "whole")]
    for (name, a), b in zip(halved.model.state_dict().items(), whole.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)
    assert load_checkpoint(tmp_path / "halved/checkpoints/last.pt")["training"]["splits"] == 4


def test_a_single_image_that_is_too_large_stops_the_run(tmp_path: Path):
    trainer = make_trainer(tmp_path, "faults.out_of_memory=halve", "train.batch_size=1")
    trainer.criterion.boxes[0] = Greedy(trainer.criterion.boxes[0])
    trainer.train()  # Greedy accepts a single image
    trainer = make_trainer(tmp_path / "b", "faults.out_of_memory=halve")
    trainer.criterion.boxes[0] = Greedy(Greedy(trainer.criterion.boxes[0]))
    trainer.criterion.boxes[0].loss.forward = lambda *_: torch.empty(2**50)
    with pytest.raises(UserError, match=r"^step 0: .*\b1 images of"):
        trainer.train()


def test_a_batch_whose_scores_divide_the_box_loss_is_not_halved(tmp_path: Path):
    trainer = make_trainer(tmp_path, "faults.out_of_memory=halve", "train.accumulation=1", "loss.box_rows=score")
    trainer.criterion.boxes[0] = Greedy(trainer.criterion.boxes[0])
    with pytest.raises(UserError, match=r"^step 0: .*\b2 images of") as error:
        trainer.train()
    assert "train.batch_size" in error.value.remedy and "halve" not in error.value.remedy


# ---- data


@pytest.mark.parametrize("deaths", [1, 4])
def test_dead_workers_are_replaced_three_times(deaths: int, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    options = ("data.num_workers=1", "train.epochs=1", "train.accumulation=1", "train.evaluate_every=0")
    trainer, whole = (make_trainer(tmp_path / name, *options) for name in ("killed", "whole"))
    remaining = iter(range(deaths))
    loader = trainer.loader

    def kill_a_worker(batches: list) -> None:
        if next(remaining, None) is not None:
            os.kill(loader._loader._iterator._workers[0].pid, signal.SIGKILL)

    watch_steps(trainer, kill_a_worker)
    if deaths > 3:
        with pytest.raises(UserError, match=r"data\.num_workers: .*\b4\b"):
            trainer.train()
        return
    trainer.train()
    whole.train()
    assert any(record.levelname == "WARNING" and "worker" in record.message for record in caplog.records)
    assert_same(dict(trainer.model.state_dict()), dict(whole.model.state_dict()))


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Trainer]:
    """Return a function that makes a trainer on ten drawn images. The images `broken` cannot be decoded."""
    rng, images, annotations = np.random.default_rng(0), [], []
    for i in range(10):
        write_image(tmp_path / f"{i}.png", rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": [10, 10, 30, 30]})
    contents = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
    (tmp_path / "annotations.json").write_text(json.dumps(contents))
    data = f"{{type: coco, images: {tmp_path}, annotations: {tmp_path / 'annotations.json'}}}"

    def make(*overrides: str, broken: tuple[int, ...]) -> Trainer:
        trainer = make_trainer(
            tmp_path / "run", f"data.train={data}", f"data.val={data}", "train.accumulation=1", *overrides
        )
        for i in broken:  # after the check of the data set
            (tmp_path / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
        return trainer

    return make


def test_an_image_that_cannot_be_read_stops_the_run(pictures: Callable[..., Trainer]):
    with pytest.raises(UserError, match=r"3\.png"):
        pictures(broken=(3,)).train()


@pytest.mark.parametrize("workers", [0, 2])
def test_other_images_replace_unreadable_images_and_these_are_counted(
    workers: int, pictures: Callable[..., Trainer], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    trainer = pictures("faults.max_unreadable=2", f"data.num_workers={workers}", broken=(3, 7))
    seen = []
    watch_steps(trainer, lambda batches: seen.extend(i for b in batches for i in b.image_ids))
    trainer.train()
    assert len(seen) == 20 and set(seen) == set(range(10)) - {3, 7}
    for name in ("3.png", "7.png"):
        assert caplog.text.count(f"{name}: ") == 1
    assert len(trainer.unreadable) == 2
    metrics, _ = load_evaluation(tmp_path / "run")
    assert metrics["AR100"] <= 0.8, "the objects of unreadable images must count as missed"


def test_too_many_unreadable_images_stop_the_run(pictures: Callable[..., Trainer]):
    with pytest.raises(UserError, match=r"faults\.max_unreadable.*[37]\.png"):
        pictures("faults.max_unreadable=1", broken=(3, 7)).train()
