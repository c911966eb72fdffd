"""A corrected network that runs without blda: folding, modules, one module per file format, verification."""
