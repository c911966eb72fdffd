"""Feature distance: keeps the encoder's features of thing classes near those before training (Hoyer et al., CVPR
2022)."""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blda_cli.core import IGNORE_INDEX
from blda_cli.data.classes import plain_name
from blda_cli.errors import BldaError
from blda_cli.finetuning.networks.student import Outputs, last_features
from blda_cli.segmenters.instance_norms import InstanceNorms
from blda_cli.text import suggestion

SHARE = 0.75
"""A feature counts where at least this share of the pixels under it are of one thing class."""

THINGS = frozenset(
    {
        *("traffic light", "traffic sign", "sign", "person", "pedestrian", "rider", "bicyclist", "motorcyclist"),
        *("cyclist", "car", "truck", "bus", "train", "motorcycle", "bicycle", "trailer", "caravan", "animal"),
    }
)
"""Classes that are things, by name."""


class FeatureDistance:
    """Mean L2 distance between the encoder's last features and those of its frozen initial copy.

    Attributes:
        things: the classes it is for, bool ``[C + 1]``; the last for pixels without a label.
    """

    def __init__(
        self,
        network: nn.Module,
        encoder: str | None,
        class_names: Sequence[str],
        things: Sequence[str],
        norm_weight: float = 1.0,
    ) -> None:
        """Copy the encoder as it is now.

        Args:
            network: the network before training, without hooks.
            encoder: the encoder's name in it.
            class_names: all classes.
            things: the classes it is for; empty: those whose names are in :data:`THINGS`.
            norm_weight: of the norms' own statistics, as in the network in training; the rest is each image's.

        Raises:
            BldaError: the network has no encoder that can be found, or no class is a thing.
        """
        if encoder is None:
            raise BldaError("--feature-distance: the network has no part called encoder or backbone; 0 does without")
        unknown = set(things) - set(class_names)
        if unknown:
            name = min(unknown)
            raise BldaError(f"host.thing_classes: there is no class {name!r}{suggestion(name, class_names)}")
        chosen = [name in things if things else plain_name(name) in THINGS for name in class_names]
        if not any(chosen):
            raise BldaError(
                "--feature-distance: no class is known as a thing; name some as host.thing_classes; 0 does without"
            )
        self._initial: nn.Module = copy.deepcopy(network.get_submodule(encoder)).requires_grad_(False).eval()
        InstanceNorms(self._initial, norm_weight).__enter__()
        self.things = torch.tensor([*chosen, False], device=next(network.parameters()).device)

    def loss(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """The distance, a scalar.

        Args:
            outputs: of the source images.
            labels: int64 ``[N, h, w]``.
        """
        features = outputs.encoder_features
        assert features is not None
        args, kwargs = outputs.encoder_inputs
        with torch.no_grad():
            initial = last_features(self._initial(*args, **kwargs))
        assert initial is not None
        weights = self._mask(labels, (features.shape[2], features.shape[3]))
        distance = torch.linalg.vector_norm(features.float() - initial.float(), dim=1)
        mean: Tensor = (weights * distance).sum() / weights.sum().clamp(min=1)
        return mean

    def _mask(self, labels: Tensor, size: tuple[int, int]) -> Tensor:
        """1 where one thing class has the share of a feature's pixels, ``[N, *size]``."""
        classes = len(self.things) - 1
        one_hot = F.one_hot(torch.where(labels == IGNORE_INDEX, classes, labels), classes + 1)
        shares = F.adaptive_avg_pool2d(one_hot.permute(0, 3, 1, 2).float(), size)
        counted: Tensor = (shares >= SHARE) & self.things.view(1, -1, 1, 1)
        return torch.any(counted, dim=1).float()
