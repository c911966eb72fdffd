"""The classes of drawn street scenes and the colours that they are drawn in."""

import numpy as np

CLASSES = ("road", "tree", "car", "sky")
COLORS = np.array([[110, 100, 105], [60, 120, 60], [170, 60, 60], [150, 180, 230]])
