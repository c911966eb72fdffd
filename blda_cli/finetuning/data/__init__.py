"""Training data: crops of images with their labels, and their random augmentation and mixing."""
