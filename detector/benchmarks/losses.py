"""The loss kernels against the memory's speed and against other renderings of the same losses.

Every candidate is a forward and a backward pass from the same logits. `gigabytes_s` counts what the loss cannot do
without, each logit read and each gradient written once (GHM-C: read twice), whatever a candidate moves in truth; a copy
of the logits is the yardstick of that. `times_subject` is against our kernel of the same loss, the first of its family.
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
FOREGROUND, IGNORED = 0.0005, 0.001  # parts of the anchors, as RetinaNet has them on COCO
ALPHA, GAMMA = 0.25, 2.0
Loss = Callable[[Tensor, Tensor], Tensor]


def make_inputs(batch_size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits around the prior (B, A, K) and labels (B, A)."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (batch_size, ANCHORS)
    logits = torch.randn(*shape, NUM_CLASSES, generator=generator, device=device).sub_(4).to(dtype)
    kind = torch.rand(shape, generator=generator, device=device)
    classes = torch.randint(NUM_CLASSES, shape, generator=generator, device=device)
    labels = torch.where(kind < FOREGROUND, classes, NUM_CLASSES)
    return logits, labels.masked_fill_(kind > 1 - IGNORED, -1)


class HarmonisedLoop(nn.Module):
    """GHM-C as it was published: a one-hot target, then a pass over all elements for each bin, with a host sync in each
    to see whether the bin is empty."""

    def __init__(self, bins: int = 30, momentum: float = 0.75):
        super().__init__()
        self.bins, self.momentum = bins, momentum
        self.running_counts = [0.0] * bins

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits, labels = logits.reshape(-1, NUM_CLASSES), labels.reshape(-1)
        target = _one_hot(logits, labels)
        valid = (labels >= 0)[:, None].expand(target.shape)
        norms = (logits.sigmoid().detach() - target).abs()
        total = max(valid.float().sum().item(), 1.0)
        weights, used = torch.zeros_like(logits), 0
        for i in range(self.bins):
            last = i == self.bins - 1
            inside = (norms >= i / self.bins) & (norms < (i + 1) / self.bins + (1e-6 if last else 0)) & valid
            count = inside.sum().item()
            if count > 0:
                self.running_counts[i] = self.momentum * self.running_counts[i] + (1 - self.momentum) * count
                weights[inside] = total / self.running_counts[i]
                used += 1
        weights = weights / max(used, 1)
        return F.binary_cross_entropy_with_logits(logits, target, weights, reduction="sum") / total


def _one_hot(logits: Tensor, labels: Tensor) -> Tensor:
    target = torch.zeros_like(logits)
    rows = is_foreground(labels, NUM_CLASSES).nonzero()[:, 0]
    target[rows, labels[rows]] = 1
    return target


def torchvision_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """As torchvision's RetinaNet calls it: drop what is ignored, one-hot target, reduction sum."""
    valid = labels >= 0
    logits, labels = logits[valid], labels[valid]
    return torchvision_focal(logits, _one_hot(logits, labels), alpha=ALPHA, gamma=GAMMA, reduction="sum")


def _dense_torchvision(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    losses = torchvision_focal(logits, target, alpha=ALPHA, gamma=GAMMA, reduction="none")
    return (losses * valid).sum()


_compiled_torchvision = torch.compile(_dense_torchvision)


def compiled_torchvision_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """torchvision's function under torch.compile, the one-hot target and the mask of static shape built outside."""
    flat = labels.reshape(-1)
    target = _one_hot(logits.detach().reshape(-1, NUM_CLASSES), flat).view_as(logits)
    return _compiled_torchvision(logits, target, (labels >= 0)[..., None])


def focal(logits: Tensor, labels: Tensor, backend: str) -> Tensor:
    return focal_terms(logits, labels, alpha=ALPHA, gamma=GAMMA, backend=backend).sum()


def make_candidates(device: torch.device, with_compile: bool) -> dict[str, dict[str, tuple[Any, int]]]:
    """Family -> name -> (loss, how often it must move each logit: reads and writes); each family's first is ours."""
    fast = "triton" if device.type == "cuda" else "cpu"
    harmonized = CLASSIFICATION_LOSSES.build("ghm_c").to(device)
    families = {
        "focal": {
            f"focal, {fast}": (partial(focal, backend=fast), 2),
            "focal, reference": (partial(focal, backend="reference"), 2),
            "focal, torchvision": (torchvision_loss, 2),
        },
        "ghm_c": {
            f"ghm_c, {fast}": (partial(harmonized, num_fg=1), 3),
            "ghm_c, published loop": (HarmonisedLoop(), 3),
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
    logits.grad = None
    loss(logits, labels).backward()


def extra_memory(loss: Loss, logits: Tensor, labels: Tensor) -> float:
    """MiB that a step has allocated at most, its gradient among it."""
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
    """A row for a copy of the logits and for each candidate."""
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
    """Rows for each batch size (default 1, and 16 on a GPU) and precision, of families with `only` in the name."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for batch_size in batch_sizes or ([1, 16] if device.type == "cuda" else [1]):
        for precision in precisions:
            logits, labels = make_inputs(batch_size, DTYPES[precision], device)
            families = {name: f for name, f in make_candidates(device, with_compile).items() if only in name}
            measured = measure(families, logits.requires_grad_(), labels, rounds)
            rows += [{"name": row.pop("name"), "batch": batch_size, "precision": precision, **row} for row in measured]
            del logits, labels
    return {"benchmark": "losses", "anchors": ANCHORS, "classes": NUM_CLASSES, "rounds": rounds, "rows": rows}
