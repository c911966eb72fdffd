"""The mathematics of logit distributions, on tensors alone.

Logits are ``[N, C, *spatial]``, labels ``[N, *spatial]`` with :data:`IGNORE_INDEX` where a pixel has none; a
classifier's are the same without ``spatial``. Nothing here prints, reads a file or asks which device it is on.
"""

IGNORE_INDEX = -1
"""The label of pixels without one: no class id, however many classes there are. Files have their own conventions."""
