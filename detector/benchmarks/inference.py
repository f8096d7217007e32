"""The duration of inference, from images to boxes.

Our forward pass and post-processing are compared with torchvision's RetinaNet with as many candidates. On CPUs they are
also compared with our ONNX file in onnxruntime, if onnxruntime is installed.
"""

import importlib.util
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from detector.benchmarks.timing import alternate, compare
from detector.benchmarks.training import NUM_CLASSES, make_batch, torchvision_retinanet
from detector.build import build_model, move_model
from detector.config import Config, config_from_text
from detector.core.structures import Batch
from detector.deploy.export import export
from detector.deploy.predict import Detector
from detector.engine.precision import autocast, choose_device, choose_dtype
from detector.models.postprocess import postprocess

PRIOR = 0.2  # every score of an untrained model is above the threshold, so post-processing has the maximum of work


def our_detections(batch: Batch, config: Config) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a function from images to detections, and a function from given predictions to detections.

    Args:
        batch: the images.
        config: the config of the model.
    """
    model, device, dtype = move_model(build_model(config, NUM_CLASSES), config)
    model.eval()
    batch = batch.to(device)

    @torch.inference_mode()
    def forward() -> object:
        with autocast(device, dtype):
            return model(batch.images)

    finish = partial(
        postprocess, sizes=batch.sizes, original_sizes=batch.original_sizes, **config.evaluation.postprocessing
    )
    predictions = forward()
    return lambda: finish(forward()), lambda: finish(predictions)


def onnxruntime_detections(batch: Batch, config: Config) -> Callable[[], object]:
    """Return a function from images to detections, on as many threads as PyTorch has.

    Args:
        batch: the images.
        config: the config of the model.
    """
    import onnxruntime

    names = [f"class {k}" for k in range(NUM_CLASSES)]
    detector = Detector(build_model(config, NUM_CLASSES), config, names, range(NUM_CLASSES))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        height, width = batch.images.shape[2:]
        export(detector, path, size=(height, width), nms=True)
        session = onnxruntime.InferenceSession(path, options)
    inputs = {"images": batch.images.contiguous().numpy(), "sizes": batch.sizes.numpy()}
    return lambda: session.run(None, inputs)


def torchvision_detections(
    batch: Batch, config: Config, dtype: torch.dtype, channels_last: bool
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a function from images to detections, and a function from given predictions to detections.

    Args:
        batch: the images.
        config: the config, for the device and the thresholds.
        dtype: the floating-point type of autocast.
        channels_last: whether the memory format is channels-last.
    """
    model, device = torchvision_retinanet(batch.images.shape[-1], config)
    model.eval()
    model.score_thresh, model.nms_thresh = config.evaluation.score_threshold, config.evaluation.nms_iou
    (bias,) = (p for name, p in model.named_parameters() if name.endswith("cls_logits.bias"))
    nn.init.constant_(bias, torch.tensor(PRIOR).logit().item())
    images = (batch.images.float() / 255).to(device)
    if channels_last:
        model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    else:
        images = images.contiguous()
    recorded: list = []
    finish = model.postprocess_detections

    def record_and_finish(*arguments: object) -> object:
        recorded[:] = arguments
        return finish(*arguments)

    setattr(model, "postprocess_detections", record_and_finish)  # noqa: B010  (a method of the library)

    @torch.inference_mode()
    def detect() -> object:
        with autocast(device, dtype):
            return model(list(images))

    detect()
    arguments = tuple(recorded)
    return detect, torch.inference_mode()(lambda: finish(*arguments))


def run(*, side: int, batch_size: int, rounds: int, precision: str) -> dict:
    """Measure inference, and post-processing alone, which torchvision runs for each level and image separately.

    Args:
        side: the image side in pixels.
        batch_size: the number of images.
        rounds: the number of calls of each candidate.
        precision: the value of train.precision.
    """
    config = config_from_text(
        "data: {train: synthetic, val: synthetic}\n"
        f"model: {{backbone: resnet50, head: {{prior: {PRIOR}}}}}\ntrain: {{precision: {precision}}}",
        "the benchmark's config",
    )
    device = choose_device(config.train.device)
    dtype = choose_dtype(config.train.precision, device)
    batch = make_batch(batch_size, side)
    ours, our_end = our_detections(batch, config)
    plain, plain_end = torchvision_detections(batch, config, torch.float32, channels_last=False)
    tuned, _ = torchvision_detections(batch, config, dtype, channels_last=True)
    name = str(dtype).removeprefix("torch.")
    complete = {"ours": ours, "torchvision, default": plain, f"torchvision, {name}, channels_last": tuned}
    if device.type == "cpu" and importlib.util.find_spec("onnxruntime"):
        complete["ours in onnxruntime, float32"] = onnxruntime_detections(batch, config)
    rows = compare(alternate(complete, rounds=rounds), "ours") + compare(
        alternate({"ours, post-processing": our_end, "torchvision, post-processing": plain_end}, rounds=rounds),
        "ours, post-processing",
    )
    for row in rows:
        row["images_s"] = batch_size / row["median_s"]
    return {
        "benchmark": "inference",
        "model": "RetinaNet R50-FPN",
        "side": side,
        "batch_size": batch_size,
        "rows": rows,
    }
