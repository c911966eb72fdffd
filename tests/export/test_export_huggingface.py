"""Hugging Face models: folders that load in transformers, and what their weights cannot hold."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import blda_cli
from blda_cli.errors import BldaError

transformers = pytest.importorskip("transformers")

NAMES = ["road", "tree", "car", "sky"]
PROCESSOR = {
    "image_processor_type": "SegformerImageProcessor", "do_resize": False, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25],
}  # fmt: skip
LABELS: dict[str, Any] = {
    "id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images to work in, and no hub."""
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(2):
        blocks = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1)).save(tmp_path / f"images/{index}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def save(model: Any) -> None:
    """Write ``model``, every class of which is predicted somewhere, to ``hf``."""
    torch.manual_seed(5)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if hasattr(model, "decode_head"):
        with torch.no_grad():
            model.decode_head.classifier.bias -= model.eval()(torch.randn(2, 3, 64, 64)).logits.mean(dim=(0, 2, 3))
    model.save_pretrained("hf")
    Path("hf/preprocessor_config.json").write_text(json.dumps(PROCESSOR))


def segformer() -> Any:
    config = transformers.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16, **LABELS
    )
    return transformers.SegformerForSemanticSegmentation(config)


def maskformer() -> Any:
    swin = transformers.SwinConfig(
        image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    decoder = transformers.DetrConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=6,
    )  # fmt: skip
    return transformers.MaskFormerForInstanceSegmentation(
        transformers.MaskFormerConfig(
            backbone_config=swin, fpn_feature_size=32, mask_feature_size=32, decoder_config=decoder, **LABELS
        )
    )


def export(**options: Any) -> Any:
    given: dict[str, Any] = {"model": "hf:hf", "images": "images", "output": "exported", "tau": 1.0, "device": "cpu"}
    given |= options if "stats" in options else {"norms": "source", **options}
    return blda_cli.export(**given)


def test_the_folder_loads_in_transformers() -> None:
    save(segformer())
    record = export()
    assert record.format == "huggingface"
    assert record.layer == "decode_head.classifier"
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained("exported").eval()
    processor = transformers.AutoImageProcessor.from_pretrained("exported")
    assert list(model.config.id2label.values()) == NAMES
    assert list(processor.image_mean) == PROCESSOR["image_mean"]
    assert model.config.blda_correction == "blda negative, τ 1"
    alignment = blda_cli.Alignment.from_file("exported.h5", tau=1.0)
    own = transformers.AutoModelForSemanticSegmentation.from_pretrained("hf").eval()
    for path in sorted(Path("images").iterdir()):
        inputs = processor(Image.open(path), return_tensors="pt")
        with torch.no_grad():
            before, after = (F.interpolate(one(**inputs).logits, (64, 64), mode="bilinear") for one in (own, model))
        assert torch.equal(after.argmax(dim=1), alignment.predict(before))
        assert not torch.equal(before.argmax(dim=1), after.argmax(dim=1))
    # Known as corrected by its folder alone.
    with pytest.raises(BldaError, match=r"exported is corrected already \(blda negative, τ 1\)"):
        blda_cli.align(model="hf:exported", images="images", stats="exported.h5", output="again", device="cpu")


def test_weights_for_the_same_folder() -> None:
    save(segformer())
    export(format="state-dict")
    text = Path("exported/model.toml").read_text()
    assert 'path = "../hf"' in text
    assert 'weights = "network.pth"' in text


def test_masks_are_corrected_by_their_scores_or_refused() -> None:
    save(maskformer())
    with pytest.raises(BldaError, match=r"normalises its classes query by query.*--format onnx"):
        export(method="logit-adjust", label_source="soft")  # its argmax is one class: other shares are nothing
    record = export(format="torchscript", method="logit-adjust", label_source="soft", stats="exported.h5")
    assert record.behind == ["Factors"]
    assert record.output_kind == "probabilities"
    plain = export(method="none", tau=None, output="plain")
    assert plain.format == "huggingface"
    assert plain.layer is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pt2", "onnx"])
def test_programs_of_a_transformer(name: str) -> None:
    save(segformer())
    record = export(format=name)
    assert record.layer == "decode_head.classifier"
    assert record.agreement.equal > 0.9999 * record.agreement.pixels
