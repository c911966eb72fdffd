import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from blda_cli.commands import cli
from blda_cli.core.choices import Shift
from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.core.fitting.strength import DomainGap, ReferenceComparison
from blda_cli.core.methods import PUBLISHED, AlignmentSettings
from blda_cli.data.classes import class_set
from blda_cli.pipelines import pictures
from blda_cli.reporting.model import Estimate, Predictions, Report, Run, Scores, Verdict, scores_of
from blda_cli.reporting.terminal import print_report
from blda_cli.reporting.words import found_gap, next_steps, percent, points, score, subject, summary
from blda_cli.runtime.monitor import SilentMonitor
from blda_cli.store.predictions import RECORD, AlignedFolder, read_record
from blda_cli.store.provenance import Provenance

MakeDomain = Callable[..., Any]


@pytest.fixture(scope="module")
def domain(make_domain: MakeDomain) -> Any:
    made = make_domain(6, 6)
    made.align("aligned", AlignmentSettings())
    made.align("adjusted", AlignmentSettings(method="logit-adjust", tau=0.5))
    return made


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["report", *map(str, arguments)], catch_exceptions=False)


def report(domain: Any, output: Path, *arguments: object) -> dict[str, Any]:
    result = run("--stats", domain.stats, *arguments, "--json", "--quiet", "--output", output)
    assert result.exit_code == 0, result.output
    data: dict[str, Any] = json.loads(result.stdout)
    assert data == json.loads((output / "report.json").read_text(encoding="utf-8"))
    return data


def confusion_of(domain: Any, folder: str) -> ConfusionMatrix:
    confusion = ConfusionMatrix(len(domain.classes))
    for key, labels in domain.labels.items():
        predicted = np.array(Image.open(domain.folder / folder / f"{key}.png"))
        confusion.update(labels[0], torch.from_numpy(predicted).long())
    return confusion


def test_without_labels(domain: Any, tmp_path: Path) -> None:
    data = report(domain, tmp_path)
    assert (data["format"], data["format_version"]) == ("blda-report", 1)
    assert [entry["name"] for entry in data["classes"]] == list(domain.classes.names)
    assert data["images"] == 6
    assert data["estimate_source"] == "sample"
    estimates = [entry["estimate"] for entry in data["classes"]]
    assert [estimate["verdict"] for estimate in estimates[:-1]] == sorted(
        (estimate["verdict"] for estimate in estimates[:-1]), key=["under", "unclear", "over"].index
    )  # later classes are favoured
    assert estimates[0]["verdict"] == "under"
    assert estimates[-2]["verdict"] == "over"
    assert estimates[-1] == {"bias": None, "low": None, "high": None, "frequency": None, "verdict": "n/a"}
    for estimate in estimates[:-1]:
        assert estimate["low"] < estimate["bias"] < estimate["high"]
    assert set(data["classes"][0]["before"]) == {"share"}
    assert data["confusion"] is None
    assert data["overall"] == {"before": {}, "runs": {}, "rank_correlation": None}
    assert data["next_steps"][0]["command"].startswith("blda align --model net.toml --images frames --flip --stats")


def test_scores_are_pooled_over_pixels_and_leave_absent_classes_out(domain: Any, tmp_path: Path) -> None:
    data = report(domain, tmp_path, "--aligned", domain.folder / "aligned", "--labels", domain.folder / "labels")
    for stage, folder in ((data["overall"]["before"], "argmax"), (data["overall"]["runs"]["aligned"], "predictions")):
        confusion = confusion_of(domain, f"aligned/{folder}")
        present = confusion.present
        assert present.tolist() == [True] * 5 + [False]
        assert stage["mean_iou"] == pytest.approx(float(confusion.iou()[present].mean()))
        assert stage["mean_accuracy"] == pytest.approx(float(confusion.accuracy()[present].mean()))
        assert stage["iou_spread"] == pytest.approx(float(np.std(confusion.iou()[present].numpy())))
        assert stage["total_bias"] == pytest.approx(float(confusion.bias()[present].abs().sum()))
    last = data["classes"][-1]
    for values in (last["before"], last["runs"]["aligned"]):
        assert (values["bias"], values["iou"], values["accuracy"]) == (None, None, None)
        assert values["share"] < 1e-3
    assert last["before"]["share"] == 0
    assert data["overall"]["runs"]["aligned"]["mean_iou"] > data["overall"]["before"]["mean_iou"]
    assert data["overall"]["rank_correlation"] > 0.9
    assert np.array(data["confusion"]["before"]).sum() == sum(labels.numel() for labels in domain.labels.values())
    changed = np.mean([(a != b).mean() for a, b in zip(*_pictures(domain), strict=True)])
    assert data["overall"]["runs"]["aligned"]["changed"] == pytest.approx(changed)
    assert data["made"]["labels"]["ignored_share"] == 0


def _pictures(domain: Any) -> list[list[np.ndarray]]:
    return [
        [np.array(Image.open(domain.folder / "aligned" / kind / f"{key}.png")) for key in domain.labels]
        for kind in ("argmax", "predictions")
    ]


def test_confusion_of_the_statistics_serves_without_folders(make_domain: MakeDomain, tmp_path: Path) -> None:
    made = make_domain(5, 3, labelled=True)
    data = report(made, tmp_path)
    assert data["confusion"]["before"] == made.statistics.confusion.counts.tolist()
    assert data["classes"][0]["before"]["iou"] is not None
    assert data["mean_shifts"]["source"] == "ground_truth"


def test_folders_side_by_side(domain: Any, tmp_path: Path) -> None:
    folders = ["--aligned", domain.folder / "aligned", "--aligned", domain.folder / "adjusted"]
    data = report(domain, tmp_path, *folders, "--labels", domain.folder / "labels")
    assert list(data["runs"]) == ["aligned", "adjusted"]
    assert data["runs"]["adjusted"]["method"] == "logit-adjust, τ 0.5"
    for name in data["runs"]:
        expected = scores_of(confusion_of(domain, f"{name}/predictions"))
        assert data["overall"]["runs"][name]["mean_iou"] == pytest.approx(expected.mean_iou)
        assert [entry["runs"][name]["iou"] for entry in data["classes"]][:-1] == pytest.approx(expected.iou[:-1])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "before | after adjusted" in page
    assert page.index("Frames that changed most") < page.index("In short") < page.index("More frames that changed")
    assert page.count("<figcaption>labels</figcaption>") == page.count("<article>") > 1


def test_predictions_with_adapted_norms_are_not_called_the_networks_own(
    domain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[tuple[str, str]] = []

    def noted(*given: Any) -> Image.Image:
        titles.append(given[-1])
        return Image.new("RGB", (4, 4))

    monkeypatch.setattr(pictures, "overlay", noted)
    counted = "not counting what the adapted norms changed before"
    for name, norms in (("trained", None), ("normed", {"weight": 0.9})):
        folder = domain.align(name, AlignmentSettings(), model={"kind": "python", "norms": norms})
        data = report(domain, tmp_path / name, "--aligned", folder, "--labels", domain.folder / "labels")
        assert any(counted in text for text in data["summary"]) == bool(norms)
        page = (tmp_path / name / "report.html").read_text(encoding="utf-8")
        present = ["with norms | after", "with adapted norms, not as trained, on the left", ">argmax with norms<"]
        present += ["<caption>With norms: rows", "pixels changed, beyond norms"]
        assert [text in page for text in present] == [bool(norms)] * len(present)
        absent = ["before | after", "before on the left", ">argmax<", "<caption>Before: rows", "pixels changed<"]
        assert [text in page for text in absent] == [not norms] * len(absent)
        pictures.write_overlays(AlignedFolder(folder, read_record(folder / RECORD)), 1, SilentMonitor())
    assert titles == [("argmax", "aligned"), ("argmax with norms", "aligned")]


def test_two_models_side_by_side(domain: Any, tmp_path: Path) -> None:
    """As of two training runs: each has its own predictions of the same images."""
    logits = dict(domain.logits)
    try:
        for key, values in logits.items():
            domain.logits[key] = values.roll(1, dims=1)
        other = domain.align(
            "other",
            AlignmentSettings(),
            model={"kind": "hf"},
            pixels_before=[1] * 6,
            pixels_after=[1] * 6,
            pixels_changed=0,
        )
    finally:
        domain.logits.update(logits)
    folders = ["--aligned", domain.folder / "aligned", "--aligned", other]
    data = report(domain, tmp_path, *folders, "--labels", domain.folder / "labels")
    for name in ("aligned", "other"):
        expected = scores_of(confusion_of(domain, f"{name}/predictions"))
        assert data["overall"]["runs"][name]["mean_iou"] == pytest.approx(expected.mean_iou)
    assert any("other is of another model than" in remark for remark in data["remarks"])
    same, another = data["summary"][-3:-1]  # the last names the best
    changed = data["overall"]["runs"]["other"]["changed"]
    assert f"changed {percent(changed)} of its own argmax's pixels." in another
    assert "Against the argmax of aligned, mean IoU went from" in another
    assert "own argmax" not in same
    assert " Mean IoU went from" in same
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("changed from its own argmax<") == 1


def test_shares_are_compared_with_those_that_a_run_corrected() -> None:
    run = Run("a", "a", "blda", {}, 0.1, Predictions([0.6, 0.4, 0.0]), {}, [0.5, 0.5, 0.0])
    assert "road grew most, 50.0" in summary(replace(made_up(None), runs=[run]))[-1]


def test_methods_are_compared_on_the_sample(make_domain: MakeDomain, tmp_path: Path) -> None:
    made = make_domain(5, 3, labelled=True)
    data = report(made, tmp_path, "--compare")
    tried = {candidate["method"]: candidate for candidate in data["candidates"]}
    assert next(iter(tried)) == "argmax"
    assert tried["argmax"]["changed"] == 0
    assert tried["argmax"]["mean_iou"] == pytest.approx(made.statistics.confusion.mean_iou(), abs=0.01)
    two_pass = next(candidate for name, candidate in tried.items() if name.startswith("blda two-pass, τ 0."))
    assert two_pass["mean_iou"] > tried["argmax"]["mean_iou"]
    assert {name.split(",")[0] for name in tried} >= {"blda balanced", "logit-adjust", "prior-shift"}
    for candidate in tried.values():
        assert sum(candidate["share"]) == pytest.approx(1)


def test_original_ids_are_read_back(make_domain: MakeDomain, tmp_path: Path) -> None:
    made = make_domain(4, 2)
    made.align("plain", AlignmentSettings())
    made.align("ids", AlignmentSettings(), ids=[7, 300, 11, 24])
    arguments = ["--aligned", made.folder / "plain", "--aligned", made.folder / "ids"]
    data = report(made, tmp_path, *arguments, "--labels", made.folder / "labels", "--label-encoding", "ids")
    assert data["confusion"]["runs"]["plain"] == data["confusion"]["runs"]["ids"]


def test_csv_has_one_line_a_class_and_empty_fields(domain: Any, tmp_path: Path) -> None:
    data = report(domain, tmp_path, "--aligned", domain.folder / "aligned", "--labels", domain.folder / "labels")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text(encoding="utf-8"))))
    assert [row["class"] for row in rows] == list(domain.classes.names)
    assert float(rows[0]["before_iou"]) == data["classes"][0]["before"]["iou"]
    assert float(rows[0]["aligned_iou"]) == data["classes"][0]["runs"]["aligned"]["iou"]
    assert rows[0]["estimate_verdict"] == "under"
    assert rows[-1]["before_iou"] == ""
    assert rows[-1]["estimate_bias"] == ""


def test_names_from_others_are_text(make_domain: MakeDomain, tmp_path: Path) -> None:
    names = ["</script><b>x", 'a "quoted" & <i>class</i>', "=1+1", "plain", "last"]
    made = make_domain(5, 2, names=names)
    made.align("aligned", AlignmentSettings())
    report(made, tmp_path, "--aligned", made.folder / "aligned", "--compare")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>x" not in page
    assert "<i>class" not in page
    assert "&lt;/script&gt;&lt;b&gt;x" in page


@pytest.mark.parametrize(
    "settings",
    [
        replace(AlignmentSettings(), shift=Shift.QUANTILE),
        PUBLISHED,
        AlignmentSettings(method="none"),
        AlignmentSettings(shift=Shift.BALANCED),
    ],
)
def test_every_correction_can_be_shown(
    settings: AlignmentSettings, domain: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = domain.align(f"of {request.node.name}", settings)
    report(domain, tmp_path, "--aligned", folder)
    assert ">after</text>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_correction_by_lost_statistics_is_shown_without_an_after(domain: Any, tmp_path: Path) -> None:
    statistics = {"file": str(tmp_path / "gone.h5"), "sha256": "sha256:1", "anchors": None, "anchors_sha256": None}
    folder = domain.align("lost", AlignmentSettings(), statistics=statistics)
    data = report(domain, tmp_path, "--aligned", folder)
    assert any("gone.h5" in remark for remark in data["remarks"])
    assert ">after</text>" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_class_that_is_never_predicted_is_absent_or_missed(make_domain: MakeDomain, tmp_path: Path) -> None:
    made = make_domain(5, 4)
    rare = 1
    for logits in made.logits.values():
        logits[:, rare] -= 3.5
    made.write_statistics(labelled=False)
    assert 0 < made.statistics.sample.seen[rare] < 500
    data = report(made, tmp_path)
    name, estimate = made.classes.names[rare], data["classes"][rare]["estimate"]
    assert estimate["verdict"] == "never"
    assert estimate["low"] < estimate["bias"] < estimate["high"] < 0  # the numbers stay
    found, sure = (text for text in data["summary"] if text.startswith(("On these", "For ")))
    assert name not in found
    assert f"never predicted, so absent or missed: {name}." in sure
    assert "of 3 classes" in sure
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "by the pixels of these images" in page
    assert "○ never" in page
    assert "<span>never predicted</span><b>1</b>" in page
    assert page.count("never predicted: absent or missed</span>") == 1
    assert points(estimate["bias"]) not in page.partition('id="classes"')[2].partition("</section>")[0]
    shown = run("--stats", made.stats, "--output", tmp_path, "--overwrite").stdout
    assert next(line for line in shown.splitlines() if line.strip().startswith(name)).split()[2:6] == [
        *("○", "never", "n/a", "n/a")
    ]
    made.write_statistics(labelled=True)  # labels tell
    scored = report(made, tmp_path / "scored")
    assert scored["classes"][rare]["estimate"] == {**estimate, "verdict": "under"}


def test_one_image_has_no_interval(make_domain: MakeDomain, tmp_path: Path) -> None:
    data = report(make_domain(4, 1), tmp_path)
    assert all(entry["estimate"]["low"] is None for entry in data["classes"])
    assert {entry["estimate"]["verdict"] for entry in data["classes"]} == {"over", "under", "n/a"}
    assert any("two or more images" in sentence for sentence in data["summary"])


def test_terminal_says_over_and_under(domain: Any, tmp_path: Path) -> None:
    folder = domain.folder / "aligned"
    arguments = ["--stats", domain.stats, "--aligned", folder, "--labels", domain.folder / "labels"]
    result = run(*arguments, "--output", tmp_path)
    assert result.exit_code == 0
    assert "▲ over" in result.stdout
    assert "▼ under" in result.stdout
    assert "pooled over pixels" in result.stdout
    assert "n/a" in result.stdout
    assert "→ after aligned: blda negative, τ" in result.stdout
    assert "…" not in result.stdout  # nothing is cut at 80 columns
    assert str(tmp_path / "report.html") in result.stdout
    assert result.stderr == ""


def test_quiet_prints_the_result_and_nothing_else(domain: Any, tmp_path: Path) -> None:
    labelled = ("--stats", domain.stats, "--aligned", domain.folder / "aligned", "--labels", domain.folder / "labels")
    loud = run(*labelled, "--output", tmp_path, "--overwrite")
    quiet = run(*labelled, "--output", tmp_path, "--overwrite", "--quiet")
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    assert quiet.stdout == loud.stdout != ""


def test_existing_report_is_kept(domain: Any, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("mine", encoding="utf-8")
    result = run("--stats", domain.stats, "--output", tmp_path)
    assert result.exit_code == 1
    assert "--overwrite" in result.stderr
    assert (tmp_path / "report.json").read_text(encoding="utf-8") == "mine"
    assert run("--stats", domain.stats, "--output", tmp_path, "--overwrite").exit_code == 0


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    message: str = result.stderr
    return message


def test_mistakes_are_named(domain: Any, make_domain: MakeDomain, tmp_path: Path) -> None:
    output = ["--output", tmp_path / "report"]
    stats = ["--stats", domain.stats]
    assert "gone.h5" in refused("--stats", tmp_path / "gone.h5", *output)
    assert "run.json" in refused(*stats, "--aligned", tmp_path, *output)
    assert "--aligned" in refused(*stats, "--labels", domain.folder / "labels", *output)
    other = make_domain(4, 2).align("aligned", AlignmentSettings())
    assert "other classes" in refused(*stats, "--aligned", other, *output)
    fewer = domain.align("fewer", AlignmentSettings(), pixels_before=[1] * 6, pixels_after=[1] * 6, pixels_changed=0)
    both = ["--aligned", domain.folder / "aligned", "--aligned", fewer]
    assert "different predictions" in refused(*stats, *both, *output)
    assert not (tmp_path / "report").exists()


def test_damaged_prediction_is_named(make_domain: MakeDomain, tmp_path: Path) -> None:
    made = make_domain(4, 2)
    folder = made.align("aligned", AlignmentSettings())
    arguments = [
        "--stats",
        made.stats,
        "--aligned",
        folder,
        "--labels",
        made.folder / "labels",
        "--output",
        tmp_path / "r",
    ]
    picture = folder / "predictions" / "drive" / "frame 1.png"
    Image.fromarray(np.full((60, 90), 77, np.uint8)).save(picture)
    assert "no class" in refused(*arguments)
    Image.fromarray(np.zeros((6, 9), np.uint8)).save(picture)
    assert "9x6" in refused(*arguments)
    picture.unlink()
    assert "frame 1.png" in refused(*arguments)
    assert not (tmp_path / "r").exists()


def test_images_that_are_gone_leave_the_predictions(make_domain: MakeDomain, tmp_path: Path) -> None:
    made = make_domain(4, 2)
    folder = made.align("aligned", AlignmentSettings())
    for picture in (made.folder / "images").rglob("*.png"):
        picture.unlink()
    report(made, tmp_path, "--aligned", folder)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<figcaption>image" not in page
    assert "prediction before" in page


def test_classifier(make_domain: MakeDomain, tmp_path: Path) -> None:
    made = make_domain(4, 3)
    classified = {key: [1, 2] for key in made.logits}
    folder = made.align("classified", AlignmentSettings(), classified=classified)
    table = tmp_path / "labels.csv"
    table.write_text("".join(f"{key},2\n" for key in made.logits), encoding="utf-8")
    data = report(made, tmp_path / "report", "--aligned", folder, "--labels", table)
    assert data["overall"]["before"]["mean_accuracy"] == 0
    assert data["overall"]["runs"]["classified"]["mean_accuracy"] == 1
    assert data["classes"][0]["before"]["iou"] is None
    assert "Frames that changed most" not in (tmp_path / "report/report.html").read_text(encoding="utf-8")


def test_the_reference_stands_beside_these_images(make_domain: MakeDomain, tmp_path: Path) -> None:
    target, reference = make_domain(5, 6), make_domain(5, 6)
    for logits in reference.logits.values():
        logits *= 3  # as sure as of images of its own kind
    reference.write_statistics(labelled=False)
    result = run("--stats", target.stats, "--reference", reference.stats, "--json", "--output", tmp_path)
    data = json.loads(result.stdout)
    assert data["reference"] == {"file": str(reference.stats), "images": 6}
    assert data["domain_gap"]["reference"]["fall"] > 0
    assert 0 < data["domain_gap"]["distance"] <= 1
    sides = [one["reference"] for one in data["classes"][:4]]  # the last is never predicted
    for index, side in enumerate(sides):
        every = torch.cat([logits.softmax(dim=1).movedim(1, -1).flatten(0, 2) for logits in target.logits.values()])
        own = every.argmax(dim=1) == index
        assert side["target"]["confidence"] == pytest.approx(float(every[own].amax(dim=1).mean()), abs=1e-3)
        assert side["target"]["share"] == pytest.approx(float(own.double().mean()), abs=1e-6)
        assert side["usual"]["share"] == pytest.approx(side["target"]["share"], abs=1e-6)
        assert side["usual"]["confidence"] > side["target"]["confidence"]
        assert side["usual"]["level"] == pytest.approx(3 * side["target"]["level"], rel=1e-3, abs=1e-3)
    assert data["classes"][4]["reference"]["usual"]["level"] is None
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Beside the reference" in html
    assert html.count(">reference</text>") == 5
    assert "reference_usual_level" in (tmp_path / "report.csv").read_text(encoding="utf-8").splitlines()[0]
    options = ["--stats", target.stats, "--output", tmp_path / "again"]
    assert "Reference (6 images) → these images" in run(*options, "--reference", reference.stats).stdout
    other = make_domain(4, 2)
    refused = run(*options, "--overwrite", "--reference", other.stats)
    assert refused.exit_code == 1
    assert "the reference is of other classes" in refused.output


def test_scores_on_images_whose_labels_a_run_was_fitted_to_flatter(make_domain: MakeDomain, tmp_path: Path) -> None:
    made = make_domain(4, 4, labelled=True)
    made.align("supervised", AlignmentSettings(method="supervised"))
    made.align("plain", AlignmentSettings())
    labels = ["--labels", made.folder / "labels"]
    for name, flatters in (("supervised", True), ("plain", False)):
        data = report(made, tmp_path / name, "--aligned", made.folder / name, *labels)
        assert any("labels of 4 of the 4 images that it is scored on" in one for one in data["remarks"]) is flatters
    unscored = report(made, tmp_path / "unscored", "--aligned", made.folder / "supervised")
    assert not any("flatter" in one for one in unscored["remarks"])


def test_a_classifiers_file_says_why_there_is_no_estimate() -> None:
    unknown = [Estimate(math.nan, math.nan, math.nan)] * 3
    text = summary(replace(made_up(None), estimates=unknown, images=60, pixels=60))
    assert "no class is predicted often enough" in text[0]
    assert "a classifier counts as one pixel, and a class needs 500" in text[1]
    assert not any("classifier" in one for one in summary(replace(made_up(None), estimates=unknown)))


def test_many_pixels_for_few_classes_are_said_plainly() -> None:
    def said(before: Scores | None, after: Scores | None, changed: float) -> str:
        run = Run("a", "a", "blda", {}, changed, Predictions([0.6, 0.39, 0.01], after), {})
        return summary(replace(made_up(before), runs=[run]))[-1]

    assert "many pixels, and bus gained half" in said(None, None, 0.1)
    assert "many pixels" not in said(None, None, 0.02)
    before = replace(scores_of(ConfusionMatrix(3)), mean_iou=0.5, mean_accuracy=0.5, pixel_accuracy=0.8, iou=[0.5] * 3)
    assert "More pixels are wrong" in said(before, replace(before, pixel_accuracy=0.78, mean_iou=0.6), 0.1)
    assert "More pixels are wrong" not in said(before, replace(before, pixel_accuracy=0.81, mean_iou=0.6), 0.1)


def test_no_class_of_a_few_pixels_grew_most() -> None:
    run = Run("a", "a", "blda", {}, 0.1, Predictions([0.6, 0.3999, 0.0001]), {})
    found = replace(made_up(None), before=Predictions([0.7, 0.299999, 0.000001]), runs=[run])
    assert "bus grew most, 30.0" in summary(found)[-1]


def test_the_header_names_network_images_and_reference() -> None:
    found = replace(made_up(None), made={"statistics": {"file": "s.h5", "model": {"factory": "nets:small"}}})
    options = {"--model": "net.toml", "--weights": "w.pth"}
    found = replace(found, provenance=Provenance(source="some frames", options=options))
    other = Run("a", "a", "blda", {}, 0.1, Predictions([1, 0, 0]), {"provenance": {"source": "other frames"}})
    same = replace(other, name="images", made={"provenance": {"source": "some frames"}})
    assert subject(replace(found, runs=[other, same])) == [
        ("network", "net.toml (nets:small) with w.pth"),
        ("images", "some frames (4 images, 400 pixels)"),
        ("classes", "3"),
        ("a", "blda, on other frames"),
        ("images", "blda"),
    ]
    parts = tuple(Provenance(source=source, options={"--model": "n.toml"}) for source in ("east", "west", "east"))
    merged = subject(replace(made_up(None), provenance=Provenance(merged=parts)))
    assert merged[:2] == [("network", "n.toml"), ("images", "east and west (4 images, 400 pixels)")]
    assert subject(replace(made_up(None), provenance=Provenance()))[0] == ("network", "not recorded")


def test_a_change_against_the_verdict_is_explained() -> None:
    estimates = [
        Estimate(0.05, 0.03, 0.07, 1.2),
        Estimate(-0.04, -0.05, -0.03, 0.5),
        Estimate(-0.04, -0.05, -0.03, 1.5),  # predicted too often by pixels: that it shrinks is as it should be
    ]

    def said(after: list[float], **settings: str) -> str:
        run = Run("a", "a", "blda", settings, 0.1, Predictions(after), {})
        return summary(replace(made_up(None), estimates=estimates, runs=[run]))[-1]

    text = said([0.8, 0.2, 0.0], method="blda", shift="negative")
    assert "bus shrank although under-predicted and road grew although over-predicted: the correction goes by" in text
    assert "favours the classes that a class competes with" in said([0.8, 0.2, 0.0], method="logit-adjust")
    assert "although" not in said([0.6, 0.4, 0.0])
    assert "although" not in said([0.70004, 0.29996, 0.0])  # as it is written, nothing changed


def test_a_class_whose_directions_differ_is_marked() -> None:
    estimates = [Estimate(0.05, 0.03, 0.07, 0.92), Estimate(-0.04, -0.05, -0.03, 0.5), Estimate(0.01, -1, 1, 0.9)]

    def printed(found: Report) -> str:
        console = Console(width=120, record=True, file=io.StringIO())
        print_report(found, console)
        return console.export_text()

    text = printed(replace(made_up(None), estimates=estimates))
    assert [line.split()[0] for line in text.splitlines() if "≠ ×" in line] == ["road"]
    assert "≠ ×0.92" in text
    assert "≠: the two differ in direction" in text
    assert "as if classes had equally many pixels; ×" in " ".join(text.split())
    assert "≠" not in printed(replace(made_up(None), estimates=estimates[1:] + estimates[1:2]))


def test_one_labelled_class_has_no_bias() -> None:
    scores = replace(scores_of(ConfusionMatrix(3)), bias=[math.nan, 0.0, math.nan])
    assert "one class alone, bus" in " ".join(summary(made_up(scores)))


def test_the_most_biased_come_first() -> None:
    many = [f"class {number}" for number in range(50)]
    estimates = [Estimate(math.nan, math.nan, math.nan)] * 47
    estimates += [Estimate(-0.1, -0.2, -0.05, frequency) for frequency in (0.9, 2.5, 0.5)]
    found = replace(made_up(None), classes=class_set(many), estimates=estimates)
    assert found.order()[:3] == [48, 49, 47]
    assert found.named("under") == ["class 49", "class 47", "class 48"]  # by pixels 48 is predicted too often
    few = made_up(None)
    assert (few.order(), [few.oddity(index) for index in range(3)]) == ([0, 1, 2], [0.05, 0.04, -1])


def test_verdicts() -> None:
    assert Estimate(0.1, 0.02, 0.2).verdict is Verdict.OVER
    assert Estimate(-0.1, -0.2, -0.02).verdict is Verdict.UNDER
    assert Estimate(0.1, -0.02, 0.2).verdict is Verdict.UNCLEAR
    assert Estimate(math.nan, math.nan, math.nan).verdict is Verdict.UNKNOWN
    assert Estimate(0.1, math.nan, math.nan).verdict is Verdict.OVER


def test_numbers() -> None:
    assert points(-0.0321) == "−3.2"
    assert points(0.0004) == points(-0.0004) == "0.0"
    assert points(math.nan) == percent(math.nan) == score(math.nan) == "n/a"
    assert percent(0.1234).split() == ["12.3", "%"]
    assert percent(0.00123).split() == ["0.12", "%"]
    assert percent(0.0).split() == ["0.0", "%"]
    assert score(0.178) == "17.8"


def made_up(before: Scores | None) -> Report:
    return Report(
        classes=class_set(["road", "bus", "bike"]),
        images=4,
        pixels=400,
        source="pseudo",
        estimates=[Estimate(0.05, 0.03, 0.07), Estimate(-0.04, -0.05, -0.03), Estimate(math.nan, math.nan, math.nan)],
        mean_shifts=[[0.0] * 3] * 3,
        shift_source="pseudo",
        before=Predictions([0.7, 0.3, 0.0], before),
        runs=[],
        candidates=[],
        rank_correlation=math.nan,
        made={"statistics": {"file": "my stats.h5"}},
        provenance=Provenance(source="some frames"),
    )


def test_words() -> None:
    text = summary(made_up(None))
    assert text[0] == (
        "On these 4 images the network, as estimated without labels, over-predicts road (+5.0 points) and "
        "under-predicts bus (−4.0 points)."
    )
    assert "2 of 2 classes" in text[1]
    assert "(n/a): bike" in text[1]
    assert next_steps(made_up(None))[0].command == (
        "blda align --model MODEL --images 'some frames' --stats 'my stats.h5' --output aligned"
    )


def test_few_classes_are_no_evidence_of_being_in_domain() -> None:
    assert "cannot be told" in found_gap(DomainGap(0.0, 0.0, 2.0, 2), 20)
    assert "look in domain" in found_gap(DomainGap(0.01, 0.01, 2.0, 11), 20)
    assert "likely to help" in found_gap(DomainGap(0.1, 0.1, 2.0, 11), 20)
    assert "So few images say little" in found_gap(DomainGap(0.1, 0.1, 2.0, 11), 3)


def test_the_evidence_of_a_reference_is_named() -> None:
    compared = ReferenceComparison(0.7, 0.9, 1.5, 0.6, 20)
    text = found_gap(DomainGap(0.01, 0.01, 2.0, 11, reference=compared), 20)
    assert "out of domain (mean confidence 70.0" in text
    assert "clearly lower" in text
    assert "look in domain" in found_gap(DomainGap(0.1, 0.1, 2.0, 11, reference=replace(compared, fall=0.0)), 20)
    assert "say little" in found_gap(DomainGap(0.1, 0.1, 2.0, 11, reference=replace(compared, images=3)), 20)


@pytest.mark.parametrize("scored", [False, True])
def test_views_are_pointed_to_where_there_were_none(scored: bool) -> None:
    better = replace(scores_of(ConfusionMatrix(3)), mean_iou=0.9, mean_accuracy=0.9)

    def commands(kind: str = "network", run_options: Any = None, **provenance: Any) -> list[str]:
        before = replace(better, mean_iou=0.1) if scored else None
        made = {"provenance": {"options": run_options or {}}}
        aligned = Run("a", "a", "blda", {}, 0.1, Predictions([0.5, 0.5, 0.0], better if scored else None), made)
        found = replace(made_up(before), runs=[aligned], provenance=Provenance(source="some frames", **provenance))
        found = replace(found, made={"statistics": {"file": "s.h5", "model": {"kind": kind}}})
        return [step.command for step in next_steps(found) if "strong" in step.command]

    assert commands(norms="target", options={"--model": "net.toml"}) == [
        "blda align --model net.toml --images 'some frames' --norms target --preset strong --output aligned-strong"
    ]
    assert commands()[0].startswith("blda align --model MODEL --images 'some frames' --preset strong")
    assert commands(options={"--flip": True}) == commands(options={"--scales": "0.5,1.0"}) == commands("logits") == []
    assert commands(run_options={"--preset": "strong"}) == []


def test_steps_from_statistics_of_averaged_views_average_them_too() -> None:
    aligned = Run("a", "a", "blda", {}, 0.1, Predictions([0.5, 0.5, 0.0]), {"provenance": {}})
    for preset, said in (("strong", True), ("published", False)):  # published is for align alone
        found = replace(made_up(None), runs=[aligned], provenance=Provenance(options={"--preset": preset}))
        supervised = next(step.command for step in next_steps(found) if "supervised" in step.command)
        assert ("--preset strong" in supervised) == said
        assert "published" not in supervised
        assert any("aligned-strong" in step.command for step in next_steps(found)) != said


@pytest.mark.parametrize(("kind", "advised"), [("python", True), ("huggingface", True), ("onnx", False)])
def test_training_is_advised_where_the_model_can_be_trained(kind: str, advised: bool) -> None:
    better = replace(scores_of(ConfusionMatrix(3)), mean_iou=0.9, mean_accuracy=0.9)
    for before, after in ((None, None), (replace(better, mean_iou=0.1), better)):
        aligned = Run("a", "a", "blda", {}, 0.1, Predictions([0.5, 0.5, 0.0], after), {"provenance": {}})
        found = replace(made_up(before), runs=[aligned])
        found = replace(found, made={"statistics": {"file": "s.h5", "model": {"kind": kind}}})
        commands = [step.command for step in next_steps(found)]
        assert any(command.startswith("blda finetune --model MODEL --no-source") for command in commands) == advised


def test_a_doubt_comes_first_and_nothing_is_advised_without_weights() -> None:
    gap = DomainGap(0.1, 0.1, 2.0, 11)

    def made(kind: str) -> Report:
        options = {"--model": "net.py:Net", "--set": ["mean=[0.5]"], "--images": "frames", "--flip": True}
        return replace(made_up(None), gap=gap, provenance=Provenance(options=options, doubts={kind: "this is why"}))

    unloaded = summary(made("weights"))
    assert unloaded[0] == "The model's weights may be wrong: this is why (see blda check)."
    assert not any("likely to help" in text for text in unloaded)
    assert [step.command for step in next_steps(made("weights"))] == [
        "blda check --model net.py:Net --set 'mean=[0.5]' --images frames"
    ]
    described = summary(made("description"))
    assert described[0] == "The model's description may be wrong: this is why (see blda check)."
    assert "likely to help" in described[1]
    assert len(next_steps(made("description"))) == 2


def test_labels_without_any_class_are_said() -> None:
    text = " ".join(summary(made_up(scores_of(ConfusionMatrix(3)))))
    assert "none of the classes" in text


def test_terminal_table_fits_any_width() -> None:
    for width in (60, 80, 140):
        console = Console(width=width, record=True, file=io.StringIO())
        print_report(made_up(None), console)
        lines = console.export_text().splitlines()
        assert max(len(line) for line in lines if "blda align" not in line and "blda report" not in line) <= width
