"""Online self-training of a segmenter: teacher, mixing, sampling, pseudo-labels, and the methods put together of them."""
