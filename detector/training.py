"""The function `train`: it builds the data sets, the model and the trainer of a config, and runs the training."""

import logging
import shlex
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from detector.build import (
    build_dataset,
    build_model,
    build_trained_model,
    build_trainer,
    require_objects,
    with_decisions,
)
from detector.build.overview import describe_run, draw_data
from detector.config import Config, load_config, to_yaml
from detector.core.command import next_steps
from detector.core.distributed import broadcast, process_group, rank
from detector.core.files import write_text
from detector.deploy.predict import Detector
from detector.engine.checkpoint import load_checkpoint
from detector.engine.claim import claim_run
from detector.engine.curves import save_curves
from detector.engine.outcome import load_evaluation, save_pictures, summary
from detector.engine.precision import choose_device
from detector.engine.run_folder import commit
from detector.evaluation.metrics import Metrics

log = logging.getLogger(__name__)


@dataclass
class TrainedRun:
    """A completed training.

    Attributes:
        folder: the run folder.
        metrics: the last metrics. `metrics["AP"]` is a number of metrics.json.
    """

    folder: Path
    metrics: Metrics = field(repr=False)

    @cached_property
    def detector(self) -> Detector:
        """The model with the best AP."""
        return Detector.load(self.folder / "checkpoints" / "best.pt")


def train(
    cfg: str | Path, *overrides: str, out: str | Path | None = None, resume: str | Path | None = None
) -> TrainedRun | None:
    """Train the detector of a config, evaluate it and write a run folder.

    Args:
        cfg: the name of a config, or the path of a file.
        overrides: changes of the config, as `key.path=value`.
        out: the run folder. The default is runs/<config>/<time> in the working directory.
        resume: the path of a checkpoint; or `auto`: the last checkpoint of `out`, or else of the newest run of `cfg`.

    Returns:
        The run. In a distributed training, all processes except the first return None.

    Raises:
        UserError: the config, the data or an argument is wrong.
        Interrupted: a signal ended the run. The state of the run is saved.
    """
    config = load_config(str(cfg), overrides)
    return train_config(
        config, Path(cfg).stem, None if out is None else Path(out), None if resume is None else str(resume)
    )


def train_config(config: Config, name: str, out: Path | None, resume: str | None) -> TrainedRun | None:
    """Train the detector of a config, as `train` does.

    Args:
        config: the config.
        name: the name of the config, for the default run folder.
        out: see `train`.
        resume: see `train`.
    """
    started = time.perf_counter()
    with ExitStack() as claims, process_group(choose_device(config.train.device)):
        if rank() > 0:
            logging.getLogger().setLevel(logging.WARNING)
        chosen = claims.enter_context(claim_run(name, out, resume)) if rank() == 0 else None
        folder, resumed = broadcast(chosen)
        checkpoint = load_checkpoint(resumed) if resumed else None
        train_set = build_dataset(config, "train")
        require_objects(train_set)
        config = with_decisions(config, train_set)
        val_set = build_dataset(config, "val", train_set.class_names)
        # the weights of the checkpoint replace `model.weights`
        if checkpoint is None:
            model = build_trained_model(config, train_set)
        else:
            model = build_model(config, len(train_set.class_names))
        trainer = build_trainer(config, model, train_set, val_set, folder)
        part = ""
        if checkpoint is not None:
            trainer.resume(checkpoint, resumed)
            log.info("continuing %s after step %d", resumed, trainer.steps_done)
            part = f" since the resume at epoch {trainer.steps_done / trainer.schedule.steps_per_epoch:.4g}"
        log.info("\n%s\n", describe_run(config, trainer, train_set, val_set, folder))
        if rank() == 0:
            write_text(folder / "config.yaml", f"# detector at commit {commit() or 'unknown'}\n" + to_yaml(config))
            if checkpoint is None:
                draw_data(config, trainer, train_set, folder)
        trainer.train()
        if rank() > 0:
            return None
    metrics, detections = load_evaluation(folder)
    save_pictures(folder, val_set, detections, count=8, score=0.3)
    save_curves(folder)
    log.info("\n%s", summary(metrics, detections))
    log.info("\ntrained in %.0f s%s; results in %s", time.perf_counter() - started, part, folder)
    log.info("%s", _results(folder, config, trainer.best_ap))
    return TrainedRun(folder, metrics)


def _results(folder: Path, config: Config, best_ap: float) -> str:
    """Return the list of files in the run folder, and the commands that use the files."""
    loggers = {part.type for part in config.train.loggers}
    files = ["metrics.json, detections.json: the last evaluation", "pictures/: validation images with detections"]
    if "csv" in loggers:
        files += ["metrics.csv, curves.png: every step"]
    files += [f"checkpoints/best.pt: the model with the best AP ({best_ap:.3f})"]
    best = shlex.quote(str(folder / "checkpoints/best.pt"))
    commands = {
        f"detector evaluate --checkpoint {best}": "where the AP is lost",
        f"detector report {shlex.quote(str(folder))} --out report.html": "the run on one page",
        f"detector infer --checkpoint {best} IMAGES --out boxes": "boxes on new images",
    }
    if "tensorboard" in loggers:
        commands[f"tensorboard --logdir {shlex.quote(str(folder))}"] = "the curves in a browser"
    return "\n".join([*(f"  {line}" for line in files), next_steps(commands)])
