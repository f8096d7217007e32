"""N steps, a stop, new objects and N more steps equal 2N steps, to the last bit."""

import copy
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from runs import (
    STEPS_PER_EPOCH,
    WITH_STATE,
    assert_same,
    make_trainer,
    rows_of,
    scalars,
    seed_global_generators,
    send_sigterm_in_step,
    watch_steps,
)
from user_transforms import Beside, Early  # noqa: F401  (registers them)

from detector.core.errors import Interrupted
from detector.engine.checkpoint import load_checkpoint
from detector.engine.trainer import Trainer

pytestmark = pytest.mark.slow  # each test trains to the end of a run

SMALL = ("model.levels=[3, 3]", "model.head.sizes=[[12, 26]]")  # a quarter of the weights, for speed
SAMPLED = (
    *("loss.classification=equalized_focal", "loss.normaliser=ema", "anchor_sampler={type: random, count: 64}"),
    *("train.precision=fp16", "train.optimizer=sgd", "train.lr=0.001", "data.short_side=32"),  # fp16 is slow here
    "data.transforms=[mosaic, {type: mixup, probability: 0.5}, copy_paste, flip, test_beside, test_early]",
)
VARIANTS = {  # together, they have every kind of state that a step changes
    "adamw, ghm after focal, average, batch norm, spikes": (
        *(*SMALL, *WITH_STATE, "loss.warmup=focal", "loss.warmup_steps=1", "faults.spike_factor=100"),
    ),
    "sgd, equalized focal, ema normaliser, fp16, random anchors, drawn samples": (*SMALL, *SAMPLED),
}
FIRST, SECOND = VARIANTS
TWO_HEADS = "a head one_to_one"
SETTINGS = VARIANTS | {
    TWO_HEADS: (
        *("model.levels=[3, 3]", "model.head={type: points, depth: 1, one_to_one: true}", "assigner=task_aligned"),
        *SAMPLED,
    )
}


@dataclass(frozen=True)
class Run:
    """A finished run. `seen` has the image ids of each step and a hash of their pixels."""

    folder: Path
    trainer: Trainer
    state: dict
    seen: list[tuple]


def watch(trainer: Trainer) -> list[tuple]:
    """Return a list that receives the image ids and the pixel hash of each later step."""
    seen = []

    def add(batches: list) -> None:
        seen.append(tuple((b.image_ids, hashlib.sha256(b.images.numpy().tobytes()).hexdigest()) for b in batches))

    watch_steps(trainer, add)
    return seen


def start(folder: Path, variant: str, *overrides: str) -> Trainer:
    trainer = make_trainer(folder, *SETTINGS[variant], *overrides)
    if trainer.step.scaler.is_enabled():
        # not the scale of a new scaler
        trainer.step.scaler.load_state_dict(trainer.step.scaler.state_dict() | {"scale": 1024.0})
    seed_global_generators(1)
    return trainer


def finish(folder: Path, variant: str, *overrides: str, change: Callable[[dict], object] | None = None) -> Run:
    """Complete an interrupted run with new objects. `change` is applied to the checkpoint first."""
    trainer = make_trainer(folder, *SETTINGS[variant], *overrides)
    seed_global_generators(2)
    checkpoint = load_checkpoint(folder / "checkpoints/last.pt")
    if change is not None:
        change(checkpoint)
    trainer.resume(checkpoint, folder / "checkpoints/last.pt")
    seen = watch(trainer)
    trainer.train()
    return Run(folder, trainer, trainer.state(), seen)


def interrupt(folder: Path, variant: str, steps: int, *overrides: str) -> list[tuple]:
    trainer = start(folder, variant, *overrides)
    seen = watch(trainer)
    send_sigterm_in_step(trainer, steps - 1)
    try:  # pytest.raises would keep the trainer and the workers of its loader alive
        trainer.train()
    except Interrupted as stopped:
        assert stopped.exit_code == 143 and trainer.steps_done == steps
    else:
        pytest.fail("not interrupted")
    assert [int(row["step"]) for row in rows_of(folder)] == list(range(steps))
    return seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    runs = {}
    for number, variant in enumerate(VARIANTS):
        folder = tmp_path_factory.mktemp(f"whole{number}")
        trainer = start(folder, variant)
        seen = watch(trainer)
        trainer.train()
        runs[variant] = Run(folder, trainer, copy.deepcopy(trainer.state()), seen)
    return runs


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[tuple]]]:
    """For each variant, return the folder of a run that was interrupted after two steps, and their images."""
    folders = {variant: tmp_path_factory.mktemp("cut") for variant in VARIANTS}
    return {variant: (folder, interrupt(folder, variant, 2)) for variant, folder in folders.items()}


@pytest.fixture(scope="module")
def new_states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Return the state of a run of each variant before its first step."""
    return {variant: start(tmp_path_factory.mktemp("new"), variant).state() for variant in VARIANTS}


def assert_equal_runs(resumed: Run, expected: Run, seen_before: list[tuple]) -> None:
    assert seen_before + resumed.seen == expected.seen
    assert_same(resumed.state, expected.state)  # weights, optimizer, scaler, losses, guard, random generators, counters
    assert_same(resumed.trainer.evaluated_model.state_dict(), expected.trainer.evaluated_model.state_dict())
    rows, expected_rows = rows_of(resumed.folder), rows_of(expected.folder)
    for row in (*rows, *expected_rows):
        row.pop("images_per_s", None)
    assert rows == expected_rows and len(rows) == expected.trainer.schedule.num_steps
    for name in ("metrics.json", "detections.json", "parts.csv"):
        assert (resumed.folder / name).read_text() == (expected.folder / name).read_text()
    for tag in ("train/loss", "val/AP"):
        assert scalars(resumed.folder, tag) == scalars(expected.folder, tag)


@pytest.mark.parametrize(
    ("steps", "variant"), [*((steps, FIRST) for steps in (2, STEPS_PER_EPOCH, 4, 2 * STEPS_PER_EPOCH)), (2, SECOND)]
)
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    steps: int, variant: str, whole: dict[str, Run], tmp_path: Path
):
    """The run stops in an epoch, or at the last step of an epoch or of the run, before its evaluation."""
    seen = interrupt(tmp_path, variant, steps)
    assert_equal_runs(finish(tmp_path, variant), whole[variant], seen)


def test_a_run_interrupted_in_its_warm_up_continues_the_warm_up_and_the_weights_of_its_two_heads(tmp_path: Path):
    """The run has enough steps for a warm-up of two steps."""
    overrides = ("train.warmup_steps=2", "train.batch_size=1", "train.accumulation=1", "train.evaluate_every=0")
    trainer = start(tmp_path / "whole", TWO_HEADS, *overrides)
    seen = watch(trainer)
    trainer.train()
    whole = Run(tmp_path / "whole", trainer, copy.deepcopy(trainer.state()), seen)
    rates = [float(row["lr"]) for row in rows_of(whole.folder)]
    assert trainer.criterion.one_to_many.mean_num_fg > 0
    assert len(rates) == 24 and 0 < rates[0] < rates[1] < rates[2] == max(rates)
    seen_before = interrupt(tmp_path / "cut", TWO_HEADS, 1, *overrides)
    assert_equal_runs(finish(tmp_path / "cut", TWO_HEADS, *overrides), whole, seen_before)


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 0)])
def test_loader_workers_make_no_difference(before: int, after: int, whole: dict[str, Run], tmp_path: Path):
    seen = interrupt(tmp_path, FIRST, 2, f"data.num_workers={before}")
    assert_equal_runs(finish(tmp_path, FIRST, f"data.num_workers={after}"), whole[FIRST], seen)


def test_a_checkpoint_in_an_epoch_resumes_like_a_checkpoint_after_a_signal(whole: dict[str, Run], tmp_path: Path):
    """The numbers of some steps have not arrived from the device when the checkpoint is written."""
    trainer = start(tmp_path, FIRST, "train.save_every=2")
    trainer.readback.delay = 2
    seen, save = watch(trainer), trainer.save

    def save_and_die(name: str) -> None:
        save(name)
        raise KeyboardInterrupt

    trainer.save = save_and_die
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert_equal_runs(finish(tmp_path, FIRST), whole[FIRST], seen)


def test_the_compared_runs_have_every_kind_of_state(whole: dict[str, Run]):
    """Without this state, the tests above would prove nothing."""
    first, second = whole.values()
    assert first.trainer.criterion.classification.density.running_counts.count_nonzero() > 1
    assert first.trainer.criterion.classification.density.steps.max() == 10  # 5 steps, two batches a step
    assert int(first.trainer.step.guard.steps) == 5 and first.trainer.step.guard.mean_loss > 0
    assert first.state["average_updates"] == 6
    weights = first.trainer.model.state_dict()
    assert any(not torch.equal(weights[k], v) for k, v in first.trainer.step.ema.module.state_dict().items())
    assert second.trainer.criterion.mean_num_fg > 0 and second.trainer.step.scaler.get_scale() == 1024
    for run in (first, second):
        trained = [p for p in run.trainer.model.parameters() if p.requires_grad]
        assert len(run.state["optimizer"]["state"]) == len(trained)


@pytest.mark.parametrize(
    ("missing", "variant"),
    [(part, FIRST) for part in ("model", "optimizer", "criterion", "guard", "average", "position")]
    + [(part, SECOND) for part in ("optimizer", "criterion", "scaler", "random")],
)
def test_a_missing_part_of_the_state_is_detected(
    missing: str,
    variant: str,
    whole: dict[str, Run],
    cut: dict[str, tuple[Path, list[tuple]]],
    new_states: dict[str, dict],
    tmp_path: Path,
):
    """The negative control of the tests above: without a part of the state, the resumed run differs."""
    folder, seen = cut[variant]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)

    def remove(checkpoint: dict) -> None:
        if missing == "average":
            checkpoint["model"] = checkpoint["training"]["model"]
        elif missing == "position":
            checkpoint["training"]["steps_done"] = 0
        else:
            checkpoint["training"][missing] = copy.deepcopy(new_states[variant][missing])
            if missing == "scaler":
                checkpoint["training"]["scaler"]["scale"] = 65536.0

    resumed = finish(tmp_path, variant, change=remove)
    with pytest.raises(AssertionError):
        assert_equal_runs(resumed, whole[variant], seen)
    end, expected = resumed.trainer.evaluated_model.state_dict(), whole[variant].trainer.evaluated_model.state_dict()
    is_same = all(torch.equal(value, expected[name]) for name, value in end.items())
    assert is_same == (missing == "guard")  # the guard changes the weights only if it refuses a step
