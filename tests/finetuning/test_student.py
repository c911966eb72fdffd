from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blda_cli.errors import BldaError
from blda_cli.finetuning.networks.student import Student, encoder_of, run_labelling, run_student
from blda_cli.finetuning.trainer import Trainer
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.instance_norms import InstanceNorms
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.spec import parse_model

EXAMPLES = Path(__file__).parents[2] / "examples"
CROP = (64, 64)


def load(model: str) -> NetworkSegmenter:
    segmenter = load_segmenter(parse_model(model), torch.device("cpu"))
    assert isinstance(segmenter, NetworkSegmenter)
    return segmenter


def student_of(segmenter: NetworkSegmenter, **changes: Any) -> Student:
    return Student(segmenter, **{"density": True, "feature_layer": None, "crop": CROP, **changes})


@pytest.mark.parametrize(
    ("toml", "classifier", "encoder"),
    [("espnet/espnet.toml", "classifier", "encoder"), ("streets/streets.toml", "classifier", None)],
)
def test_classifier_and_encoder_are_found(toml: str, classifier: str, encoder: str | None) -> None:
    student = student_of(load(str(EXAMPLES / toml)))
    assert student.classifier == classifier
    assert student.encoder == encoder


@pytest.fixture
def segformer_folder(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        num_labels=5,
    )
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    transformers.SegformerImageProcessor(do_resize=False).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def segformer(segformer_folder: Path) -> NetworkSegmenter:
    return load(str(segformer_folder))


def test_a_hugging_face_network_trains(segformer: NetworkSegmenter) -> None:
    student = student_of(segformer)
    assert student.classifier == "decode_head.classifier"
    assert student.encoder == "segformer"
    outputs = run_student(segformer, student, student, 255 * torch.rand(2, 3, *CROP))
    assert outputs.logits.shape == (2, 5, *CROP)
    assert outputs.encoder_features is not None
    assert outputs.encoder_features.shape == (2, 16, 2, 2)
    assert outputs.density is not None
    (outputs.logits.mean() + outputs.density.mean()).backward()
    assert student.density_head is not None
    assert all(one.grad is not None for one in student.density_head.parameters())


def test_a_hugging_face_network_goes_through_a_run(segformer_folder: Path, project: Any, tmp_path: Path) -> None:
    output = tmp_path / "run"
    names = [f"class {number}" for number in range(5)]
    (tmp_path / "hf.toml").write_text(
        f'[segmenter]\nkind = "huggingface"\npath = "{segformer_folder}"\n[classes]\nnames = {names}\n'
        '[labels]\nencoding = "ids"\n'
    )
    values = {
        "data.model": str(tmp_path / "hf.toml"),
        "training.activation_checkpointing": True,
        "training.iterations": 2,
    }
    project.run(
        output,
        **{key.replace(".", "__"): value for key, value in values.items()},
        host__feature_distance=0.005,
        host__thing_classes=("class 2",),
        run__target_norms=False,
    )
    trained = load(str(output / "model.toml")).module.state_dict()
    start = load(str(tmp_path / "hf.toml")).module.state_dict()
    teacher = torch.load(output / "checkpoint.pth", weights_only=True)["trainer"]["teacher"]
    assert all(torch.equal(value, teacher[name]) for name, value in trained.items())
    assert any(not torch.equal(value, start[name]) for name, value in trained.items())


def test_recomputing_activations_changes_no_gradient(segformer_folder: Path, project: Any, batches: Any) -> None:
    drawn = batches(project, [[0, 1]])
    gradients = []
    for recomputed in (False, True):
        settings = project.settings(training__activation_checkpointing=recomputed)
        segmenter = load(str(segformer_folder))
        for module in segmenter.module.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        trainer = Trainer(segmenter, settings)
        trainer.train_step(drawn)
        gradients.append({name: one.grad for name, one in trainer.student.named_parameters() if one.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_features_are_those_in_front_of_the_classifier() -> None:
    segmenter = load(str(EXAMPLES / "streets" / "streets.toml"))
    images = 255 * torch.rand(2, 3, *CROP)
    student = student_of(segmenter, density=False).eval()
    outputs = run_student(segmenter, student, student, images)
    assert outputs.features is not None
    scores = student.network.get_submodule("classifier")(outputs.features)
    resized = nn.functional.interpolate(scores, CROP, mode="bilinear", align_corners=False)
    torch.testing.assert_close(outputs.logits, resized)
    copied = load(str(EXAMPLES / "streets" / "streets.toml")).module.eval()
    labelling = run_labelling(segmenter, copied, student.classifier, images)
    assert labelling.features is not None
    assert not labelling.features.requires_grad
    torch.testing.assert_close(labelling.features, outputs.features)
    torch.testing.assert_close(labelling.logits, outputs.logits)
    assert not copied.get_submodule("classifier")._forward_pre_hooks
    assert run_labelling(segmenter, copied, None, images).features is None
    with InstanceNorms(copied, 0.5) as norms:
        mixed = run_labelling(segmenter, copied, None, images, norms).logits
    segmenter.mix_norms(0.5)
    segmenter.network = copied
    torch.testing.assert_close(mixed, segmenter.logits(images.permute(0, 2, 3, 1)))
    assert not torch.allclose(mixed, labelling.logits, atol=1e-2)


def test_class_groups_train_through_the_grouped_logits() -> None:
    segmenter = load(str(EXAMPLES / "espnet" / "espnet.toml"))
    student = student_of(segmenter)
    outputs = run_student(segmenter, student, student, 255 * torch.rand(1, 3, *CROP))
    assert outputs.logits.shape == (1, 11, *CROP)
    outputs.logits[:, 1].sum().backward()  # building: building and wall
    gradient = student.network.get_parameter("classifier.weight").grad
    assert gradient is not None
    moved = gradient.abs().sum(dim=(0, 2, 3)) > 0
    assert moved.nonzero().flatten().tolist() == [2, 3]


def settings_by_name(student: Student) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every parameter, for 1e-4, ten times that and 0.01."""
    groups = student.parameter_groups(1e-4, 10, 0.01)
    of = {id(one): (group["lr"], group["weight_decay"]) for group in groups for one in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(of)
    return {name: of[id(parameter)] for name, parameter in student.named_parameters()}


def test_encoder_and_the_rest_have_their_own_learning_rates() -> None:
    rates = settings_by_name(student_of(load(str(EXAMPLES / "espnet" / "espnet.toml"))))
    for name, (rate, _) in rates.items():
        assert rate == (1e-4 if name.startswith("network.encoder.") else 1e-3), name


def test_without_an_encoder_all_but_the_classifier_is_slow() -> None:
    rates = settings_by_name(student_of(load(str(EXAMPLES / "streets" / "streets.toml")), density=False))
    assert {name for name, (rate, _) in rates.items() if rate == 1e-3} == {
        "network.classifier.weight",
        "network.classifier.bias",
    }


def test_norms_and_nothing_else_go_without_weight_decay() -> None:
    student = student_of(load(str(EXAMPLES / "espnet" / "espnet.toml")))
    norms = {
        f"{name}.{kind}"
        for name, module in student.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for kind in ("weight", "bias")
    }
    assert len(norms) > 20
    assert {name for name, (_, decay) in settings_by_name(student).items() if decay == 0} == norms
    assert all(decay in (0, 0.01) for _, decay in settings_by_name(student).values())


def test_a_named_feature_layer_is_used() -> None:
    student = student_of(load(str(EXAMPLES / "streets" / "streets.toml")), feature_layer="lateral2")
    assert student.density_head is not None
    first = student.density_head.layers[0]
    assert isinstance(first, nn.Conv2d)
    assert first.in_channels == 32


def test_a_feature_layer_that_does_not_exist_is_named() -> None:
    with pytest.raises(
        BldaError, match=r"--feature-layer head: the network runs no such layer; its last ones are .*classifier"
    ):
        student_of(load(str(EXAMPLES / "streets" / "streets.toml")), feature_layer="head")


def test_features_that_are_no_map_are_refused(tmp_path: Path) -> None:
    (tmp_path / "flat.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Flat(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.head = nn.Linear(3, 4)\n\n"
        "    def forward(self, x):\n"
        "        y = self.head(x.flatten(2).mT)\n        return y.mT.unflatten(2, x.shape[2:])\n"
    )
    (tmp_path / "flat.toml").write_text(
        '[segmenter]\nkind = "python"\nfactory = "flat:Flat"\n[classes]\nnames = ["a", "b", "c", "d"]\n'
    )
    with pytest.raises(BldaError, match=r"no map of features .* --feature-layer, or use --method dacs"):
        student_of(load(str(tmp_path / "flat.toml")))


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pooled.py").write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    (tmp_path / "pooled.toml").write_text(
        '[segmenter]\nkind = "python"\nfactory = "pooled:make"\n[classes]\nnames = ["a", "b"]\n'
    )
    with pytest.raises(BldaError, match="finetune trains segmenters"):
        student_of(load(str(tmp_path / "pooled.toml")))


class Parts(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


@pytest.mark.parametrize(
    ("network", "encoder"),
    [
        (Parts(head=nn.Conv2d(9, 9, 3), backbone=nn.Conv2d(3, 3, 1)), "backbone"),
        (Parts(model=Parts(encoder=nn.Conv2d(3, 3, 1), head=nn.Conv2d(9, 9, 3))), "model.encoder"),
        (Parts(vit=nn.Conv2d(9, 9, 3), head=nn.Conv2d(3, 3, 1)), "vit"),
        (Parts(stem=nn.Conv2d(3, 3, 1), body=nn.Conv2d(9, 9, 3)), None),
        (nn.Sequential(nn.Conv2d(9, 9, 3), nn.Conv2d(3, 3, 1)), None),
        (nn.Conv2d(3, 3, 1), None),
    ],
)
def test_what_is_called_the_encoder(network: nn.Module, encoder: str | None) -> None:
    assert encoder_of(network) == encoder
