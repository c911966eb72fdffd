"""Device, processes, read-ahead and progress, shared by all commands."""
