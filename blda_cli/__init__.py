"""blda: see and correct the class bias of a pretrained segmenter on images it was not trained on."""

__version__ = "0.1.0"
