"""Train a detector, evaluate it and leave a run folder.

Example: tools/train.py --cfg retina_focal.yaml --out runs/first train.epochs=2 loss.classification.gamma=1.0
"""

import argparse
import logging
import time
from contextlib import ExitStack
from pathlib import Path

from detector.command import out_folder, run

log = logging.getLogger("detector")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="a config's name in configs/, or a path")
    parser.add_argument("--out", type=out_folder, help="run folder; default runs/<config>/<time>")
    parser.add_argument(
        "--resume", help="auto: the last checkpoint of --out, else of the newest run of --cfg; or a file"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    args = parser.parse_intermixed_args()
    # only now: --help need not wait for any of them, nor a wrong config for torch
    from detector.config import load_config, to_yaml
    from detector.machine import take_fastest

    config = load_config(args.cfg, args.overrides)
    if (fastest := take_fastest(args.cfg)) and config.data.num_workers == "auto":
        data = config.data.model_copy(update={"num_workers": fastest["workers"]})
        config = config.model_copy(update={"data": data})

    from detector.build import (
        build_dataset,
        build_model,
        build_trained_model,
        build_trainer,
        require_objects,
        with_bits,
    )
    from detector.distributed import broadcast, process_group, rank, world_size
    from detector.engine.checkpoint import load_checkpoint
    from detector.engine.claim import claim_run
    from detector.engine.outcome import load_evaluation, save_curves, save_pictures, summary
    from detector.engine.precision import choose_device
    from detector.engine.run_folder import commit
    from detector.files import write_text

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    started = time.perf_counter()

    with ExitStack() as claims, process_group(choose_device(config.train.device)):
        if rank() > 0:
            logging.getLogger().setLevel(logging.WARNING)
        chosen = claims.enter_context(claim_run(Path(args.cfg).stem, args.out, args.resume)) if rank() == 0 else None
        folder, resumed = broadcast(chosen)
        checkpoint = load_checkpoint(resumed) if resumed else None
        train = build_dataset(config, "train")
        require_objects(train)
        config = with_bits(config, train)
        val = build_dataset(config, "val", train.class_names)
        # a checkpoint brings its own weights
        model = (
            build_trained_model(config, train) if checkpoint is None else build_model(config, len(train.class_names))
        )
        trainer = build_trainer(config, model, train, val, folder)
        if checkpoint is not None:
            trainer.resume(checkpoint, resumed)
            log.info("continuing %s after step %d", resumed, trainer.steps_done)

        if fastest:
            log.info("as measured here on %(measured)s: %(workers)s loader workers, %(openmp)s", fastest)
        log.info("training on %s", train.describe())
        log.info("validating on %s", val.describe())
        log.info("%s, %s, %d processes; run folder %s", trainer.device, trainer.dtype, world_size(), folder)
        if rank() == 0:
            write_text(folder / "config.yaml", f"# detector at commit {commit() or 'unknown'}\n" + to_yaml(config))
        trainer.train()
        if rank() > 0:
            return

    metrics, detections = load_evaluation(folder)
    log.info("%s", summary(metrics, detections))
    save_pictures(folder, val, detections, count=8, score=0.3)
    save_curves(folder)
    log.info(
        "done in %.0f s. %s: metrics.json (the numbers above), metrics.csv (each step), curves.png, pictures/, "
        "checkpoints/best.pt (AP %.3f) and last.pt; tensorboard --logdir %s",
        time.perf_counter() - started,
        folder,
        trainer.best_ap,
        folder,
    )


if __name__ == "__main__":
    run(main)
