"""The speed of the loss kernels against the memory bandwidth and against other implementations of the same losses.

Every candidate is a forward and a backward pass from the same logits. `gigabytes_s` counts the minimal memory traffic
of the loss: each logit is read once (GHM-C: twice) and each gradient is written once. The real traffic of a candidate
may be higher. A copy of the logits shows the available bandwidth. `times_subject` is the ratio to our kernel of the
same loss, the first candidate of the family.
"""

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torchvision.ops import sigmoid_focal_loss as torchvision_focal

from detector.benchmarks.timing import alternate, compare
from detector.core.structures import is_foreground
from detector.engine.precision import DTYPES
from detector.kernels import focal_terms
from detector.losses import CLASSIFICATION_LOSSES

ANCHORS, NUM_CLASSES = 120_000, 80
FOREGROUND, IGNORED = 0.0005, 0.001  # fractions of the anchors, as for RetinaNet on COCO
ALPHA, GAMMA = 0.25, 2.0
Loss = Callable[[Tensor, Tensor], Tensor]


def make_inputs(batch_size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return random logits around the prior, (B, A, K), and random labels, (B, A).

    Args:
        batch_size: B.
        dtype: the type of the logits.
        device: the device of both tensors.
    """
    generator = torch.Generator(device).manual_seed(0)
    shape = (batch_size, ANCHORS)
    logits = torch.randn(*shape, NUM_CLASSES, generator=generator, device=device).sub_(4).to(dtype)
    kind = torch.rand(shape, generator=generator, device=device)
    classes = torch.randint(NUM_CLASSES, shape, generator=generator, device=device)
    labels = torch.where(kind < FOREGROUND, classes, NUM_CLASSES)
    return logits, labels.masked_fill_(kind > 1 - IGNORED, -1)


class HarmonizedLoop(nn.Module):
    """GHM-C as in its publication.

    The target is one-hot. Each bin needs a pass over all elements, and a host synchronization to test for an empty bin.
    """

    def __init__(self, bins: int = 30, momentum: float = 0.75):
        super().__init__()
        self.bins, self.momentum = bins, momentum
        self.running_counts = [0.0] * bins

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a 0-dim tensor.

        Args:
            logits: (..., K).
            labels: (...).
        """
        logits, labels = logits.reshape(-1, NUM_CLASSES), labels.reshape(-1)
        target = _one_hot(logits, labels)
        is_valid = (labels >= 0)[:, None].expand(target.shape)
        norms = (logits.sigmoid().detach() - target).abs()
        total = max(is_valid.float().sum().item(), 1.0)
        weights, num_used = torch.zeros_like(logits), 0
        for i in range(self.bins):
            is_last = i == self.bins - 1
            in_bin = (norms >= i / self.bins) & (norms < (i + 1) / self.bins + (1e-6 if is_last else 0)) & is_valid
            count = in_bin.sum().item()
            if count > 0:
                self.running_counts[i] = self.momentum * self.running_counts[i] + (1 - self.momentum) * count
                weights[in_bin] = total / self.running_counts[i]
                num_used += 1
        weights = weights / max(num_used, 1)
        return F.binary_cross_entropy_with_logits(logits, target, weights, reduction="sum") / total


def _one_hot(logits: Tensor, labels: Tensor) -> Tensor:
    target = torch.zeros_like(logits)
    rows = is_foreground(labels, NUM_CLASSES).nonzero()[:, 0]
    target[rows, labels[rows]] = 1
    return target


def torchvision_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return torchvision's focal loss as torchvision's RetinaNet calls it.

    Ignored anchors are dropped, the target is one-hot, and the reduction is a sum.

    Args:
        logits: (B, A, K).
        labels: (B, A).
    """
    is_valid = labels >= 0
    logits, labels = logits[is_valid], labels[is_valid]
    return torchvision_focal(logits, _one_hot(logits, labels), alpha=ALPHA, gamma=GAMMA, reduction="sum")


def _dense_torchvision(logits: Tensor, target: Tensor, is_valid: Tensor) -> Tensor:
    losses = torchvision_focal(logits, target, alpha=ALPHA, gamma=GAMMA, reduction="none")
    return (losses * is_valid).sum()


_compiled_torchvision = torch.compile(_dense_torchvision)


def compiled_torchvision_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return torchvision's focal loss under torch.compile, with target and mask of static shape built outside.

    Args:
        logits: (B, A, K).
        labels: (B, A).
    """
    flat = labels.reshape(-1)
    target = _one_hot(logits.detach().reshape(-1, NUM_CLASSES), flat).view_as(logits)
    return _compiled_torchvision(logits, target, (labels >= 0)[..., None])


def focal(logits: Tensor, labels: Tensor, backend: str) -> Tensor:
    """Return our focal loss.

    Args:
        logits: (B, A, K).
        labels: (B, A).
        backend: the name of the kernel.
    """
    return focal_terms(logits, labels, alpha=ALPHA, gamma=GAMMA, backend=backend).sum()


def make_candidates(device: torch.device, with_compile: bool) -> dict[str, dict[str, tuple[Any, int]]]:
    """Return the candidates of each family by name. The first candidate of a family is our kernel.

    Args:
        device: the device of the losses.
        with_compile: whether compiled candidates are included.

    Returns:
        For each family and name, the loss and the number of reads and writes of each logit that the loss needs.
    """
    fast = "triton" if device.type == "cuda" else "cpu"
    harmonized = CLASSIFICATION_LOSSES.build("ghm_c", power=1.0).to(device)  # as in the published loop
    families = {
        "focal": {
            f"focal, {fast}": (partial(focal, backend=fast), 2),
            "focal, reference": (partial(focal, backend="reference"), 2),
            "focal, torchvision": (torchvision_loss, 2),
        },
        "ghm_c": {
            f"ghm_c, {fast}": (partial(harmonized, num_fg=1), 3),
            "ghm_c, published loop": (HarmonizedLoop(), 3),
        },
    }
    if with_compile:
        families["focal"]["focal, compiled"] = (partial(focal, backend="compiled"), 2)
        families["focal"]["focal, torchvision under torch.compile"] = (compiled_torchvision_loss, 2)
    others = set(CLASSIFICATION_LOSSES.names()) - {"focal", "ghm_c", "equalized_focal"}
    built = {name: CLASSIFICATION_LOSSES.build(name) for name in others}
    built["equalized_focal"] = CLASSIFICATION_LOSSES.build("equalized_focal", num_classes=NUM_CLASSES)
    return families | {name: {name: (partial(built[name].to(device), num_fg=1), 2)} for name in sorted(built)}


def step(loss: Loss, logits: Tensor, labels: Tensor) -> None:
    """Run a forward and a backward pass.

    Args:
        loss: the loss.
        logits: (B, A, K), a leaf that requires a gradient.
        labels: (B, A).
    """
    logits.grad = None
    loss(logits, labels).backward()


def extra_memory(loss: Loss, logits: Tensor, labels: Tensor) -> float:
    """Return the peak of the memory that a step allocates, with the gradient, in MiB.

    Args:
        loss: the loss.
        logits: (B, A, K), a leaf that requires a gradient.
        labels: (B, A).
    """
    logits.grad = None
    if logits.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, logits, labels)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step(loss, logits, labels)
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(accumulate(changes)) / 2**20


def measure(families: dict, logits: Tensor, labels: Tensor, rounds: int) -> list[dict]:
    """Return a row for a copy of the logits and for each candidate.

    Args:
        families: the candidates (see `make_candidates`).
        logits: (B, A, K), a leaf that requires a gradient.
        labels: (B, A).
        rounds: the number of calls of each candidate.
    """
    copied = torch.empty_like(logits)
    size = logits.numel() * logits.element_size()
    calls = {"copy": lambda: copied.copy_(logits.detach())}
    for family in families.values():
        calls |= {name: partial(step, loss, logits, labels) for name, (loss, _) in family.items()}
    seconds = alternate(calls, rounds=rounds)
    copy_s = median(seconds["copy"])
    rows = [{"name": "copy", "median_s": copy_s, "times_copy": 1.0, "gigabytes_s": 2 * size / copy_s / 1e9}]
    for family in families.values():
        for row in compare({name: seconds[name] for name in family}, next(iter(family))):
            loss, moves = family[row["name"]]
            rows.append(
                {
                    **row,
                    "times_copy": row["median_s"] / copy_s,
                    "gigabytes_s": moves * size / row["median_s"] / 1e9,
                    "extra_mib": extra_memory(loss, logits, labels),
                }
            )
    return rows


def run(*, batch_sizes: list[int] | None, precisions: list[str], rounds: int, with_compile: bool, only: str) -> dict:
    """Measure the losses for each batch size and precision.

    Args:
        batch_sizes: the numbers of images. The default is 1, and also 16 on a GPU.
        precisions: the types of the logits, names of DTYPES.
        rounds: the number of calls of each candidate.
        with_compile: whether compiled candidates are included.
        only: a text that the name of a measured family contains.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for batch_size in batch_sizes or ([1, 16] if device.type == "cuda" else [1]):
        for precision in precisions:
            logits, labels = make_inputs(batch_size, DTYPES[precision], device)
            candidates = make_candidates(device, with_compile)
            families = {name: family for name, family in candidates.items() if only in name}
            measured = measure(families, logits.requires_grad_(), labels, rounds)
            rows += [{"name": row.pop("name"), "batch": batch_size, "precision": precision, **row} for row in measured]
            del logits, labels
    return {"benchmark": "losses", "anchors": ANCHORS, "classes": NUM_CLASSES, "rounds": rounds, "rows": rows}
