"""What every command runs on: device, processes, progress."""
