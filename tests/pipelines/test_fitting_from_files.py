from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from blda_cli.core.choices import LabelSource, LogitSpace
from blda_cli.core.methods import AlignmentSettings
from blda_cli.data.classes import class_set
from blda_cli.errors import BldaError, OptionError
from blda_cli.pipelines.alignment_inputs import AlignmentInputs, StatisticsInput
from blda_cli.pipelines.requests import STRONG, FilesRequest
from blda_cli.segmenters.base import model_identity
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.store.prediction_folder import check_folder
from blda_cli.store.statistics import StatisticsFile, write_statistics

if TYPE_CHECKING:
    from tests.pipelines.conftest import RandomSegmenter

PATH = Path("s.h5")


@pytest.fixture
def content(collect: Callable[..., StatisticsFile], tmp_path: Path) -> StatisticsFile:
    return collect(tmp_path / "s.h5")


def with_reference(target: StatisticsFile, reference: StatisticsFile) -> AlignmentInputs:
    return AlignmentInputs(StatisticsInput(target), reference=StatisticsInput(reference))


def test_what_does_not_fit_together_is_refused(content: StatisticsFile) -> None:
    settings = AlignmentSettings(label_source=LabelSource.GROUND_TRUTH)
    with pytest.raises(BldaError, match="--label-source ground_truth: the statistics hold only pseudo, soft"):
        AlignmentInputs(StatisticsInput(content)).evidence(settings)
    with pytest.raises(BldaError, match="the reference is of other classes"):
        with_reference(content, replace(content, classes=class_set(["a", "b", "c"]))).evidence(AlignmentSettings())
    centred = replace(content, statistics=copy(content.statistics))
    centred.statistics.space = LogitSpace.CENTRED
    with pytest.raises(BldaError, match="the reference holds centred logits, the statistics raw ones"):
        with_reference(content, centred).evidence(AlignmentSettings())


def test_statistics_of_other_models(segmenter: RandomSegmenter, content: StatisticsFile) -> None:
    options, inputs = InferenceOptions(), AlignmentInputs(StatisticsInput(content, PATH))
    inputs.check(segmenter, options, force=False)
    for changed, difference in (
        (InferenceOptions(flip=True), "inference.flip"),
        (InferenceOptions(scales=(0.5, 1.0)), "inference.scales"),
        (InferenceOptions(slide=(8, 8), stride=(4, 4)), "inference.slide"),
    ):
        with pytest.raises(BldaError, match=difference):
            inputs.check(segmenter, changed, force=False)
        inputs.check(segmenter, changed, force=True)
    # what changes nothing but speed does not matter
    inputs.check(segmenter, InferenceOptions(batch_size=8, workers=5, amp=True), force=False)
    segmenter.classes = class_set(["road", "tree"])
    with pytest.raises(BldaError, match="is of 3 classes, the model has 2"):
        inputs.check(segmenter, options, force=True)


def test_a_reference_may_have_other_norms(segmenter: RandomSegmenter, content: StatisticsFile) -> None:
    """It is collected with the network as it came; what else differs is refused."""
    segmenter.identity = {**segmenter.identity, "norms": {"images": 32}}
    adapted = replace(content, model={**content.model, "norms": {"images": 32}})
    inputs = AlignmentInputs(StatisticsInput(adapted, PATH), reference=StatisticsInput(content, Path("reference.h5")))
    inputs.check(segmenter, InferenceOptions(), force=False)
    with pytest.raises(BldaError, match=r"s\.h5 was made with another model .* differs in norms"):
        AlignmentInputs(StatisticsInput(content, PATH)).check(segmenter, InferenceOptions(), force=False)
    flipped = replace(content, model={**content.model, "kind": "other"})
    inputs = AlignmentInputs(StatisticsInput(adapted, PATH), reference=StatisticsInput(flipped, Path("reference.h5")))
    with pytest.raises(BldaError, match=r"reference\.h5 was made with another model .* differs in kind"):
        inputs.check(segmenter, InferenceOptions(), force=False)


def test_a_reference_is_of_the_scales_that_are_left(segmenter: RandomSegmenter, content: StatisticsFile) -> None:
    """Of the scales of ``--preset strong`` each statistics keep their own; the way out names them."""
    views = InferenceOptions(scales=(0.5, 1.0), flip=True)
    target, other = (replace(content, model=model_identity(segmenter, one)) for one in (views, STRONG))
    inputs = AlignmentInputs(StatisticsInput(target, PATH), reference=StatisticsInput(other, Path("reference.h5")))
    with pytest.raises(
        BldaError, match=r"reference\.h5 differs in inference\.scales .*: collect it with --scales 0\.5,1,"
    ):
        inputs.check(segmenter, views, force=False)


def test_the_former_name_of_the_reference_warns() -> None:
    with pytest.warns(DeprecationWarning, match="anchors is called reference"):
        request = FilesRequest(anchors=PATH)
    assert (request.reference, request.anchors) == (PATH, None)
    with pytest.raises(OptionError, match="give --reference alone"):
        FilesRequest(anchors=PATH, reference=PATH)


def test_what_a_run_was_fitted_to_is_found_again_under_the_former_name_too(
    content: StatisticsFile, tmp_path: Path
) -> None:
    paths = [tmp_path / "s.h5", tmp_path / "r.h5"]
    write_statistics(paths[1], content)
    inputs = AlignmentInputs(*map(StatisticsInput.read, paths))
    made = inputs.record()
    former = {name.replace("reference", "anchors"): value for name, value in made.items()}
    assert former.keys() != made.keys()
    for record in (made, former):
        found = AlignmentInputs.recorded(record)
        assert found is not None
        assert [used.path for used in found.every()] == paths
        assert found.reference is not None


def test_folders(tmp_path: Path) -> None:
    check_folder(tmp_path / "new", overwrite=False)
    check_folder(tmp_path, overwrite=False)
    (tmp_path / "predictions").mkdir()
    for overwrite in (False, True):
        with pytest.raises(BldaError, match=r"holds other things \(predictions\)"):
            check_folder(tmp_path, overwrite=overwrite)
    (tmp_path / ".partial").mkdir()
    check_folder(tmp_path, overwrite=False)
    (tmp_path / "run.json").write_text("{}")
    check_folder(tmp_path, overwrite=False)  # an overwriting run was stopped: it goes on
    (tmp_path / ".partial").rmdir()
    with pytest.raises(BldaError, match="--overwrite replaces them"):
        check_folder(tmp_path, overwrite=False)
    check_folder(tmp_path, overwrite=True)
    (tmp_path / "stats.h5").write_text("")
    with pytest.raises(BldaError, match=r"holds other things \(stats\.h5\)"):
        check_folder(tmp_path, overwrite=True)
