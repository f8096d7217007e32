"""Training from Python: what `train` gives back is what the command line leaves."""

from pathlib import Path

import numpy as np
import pytest
from tiny import TINY

from detector import Detector, train
from detector.core.errors import UserError
from detector.core.files import read_json


@pytest.mark.slow
def test_a_config_becomes_a_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY, encoding="utf-8")
    run = train("./tiny.yaml", "train.epochs=1", "evaluation.score_threshold=0")
    assert run.folder.parent == Path("runs/tiny")
    assert run.metrics["AP"] == pytest.approx(read_json(run.folder / "metrics.json")["AP"], nan_ok=True)
    assert isinstance(run.detector, Detector) and run.detector is run.detector
    (detections,) = run.detector.predict([np.zeros((64, 64, 3), np.uint8)])
    assert len(detections.boxes)

    again = train(Path("tiny.yaml").resolve(), "train.epochs=2", out=run.folder, resume="auto")
    assert again.folder == run.folder
    assert [("epoch 1" in text) for text in caplog.messages if f"results in {run.folder}" in text] == [False, True]
    assert len((run.folder / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 1 + 2 * 6


def test_what_the_user_got_wrong_is_raised(tmp_path: Path):
    with pytest.raises(UserError, match=r"train\.epoch\b"):
        train("retina_focal.yaml", "train.epoch=1")
    with pytest.raises(UserError, match="nope"):
        train("nope")
