"""Files on disk: statistics as HDF5, predictions as PNG trees with a record of how they were made."""
