"""What the commands do, one call each: from a segmenter and image files to results on disk."""
