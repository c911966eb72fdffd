"""Images, labels and the classes they name: everything on the disk but statistics and predictions."""
