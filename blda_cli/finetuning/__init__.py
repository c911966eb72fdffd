"""Online self-training of a segmenter: teacher, mixing, sampling, pseudo-labels, and the methods made of them."""
