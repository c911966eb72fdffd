"""Images, labels and classes: the input files other than statistics and predictions."""
