"""How much memory is left on this machine."""

from pathlib import Path


def available_memory() -> int | None:
    """Bytes that this process may still take, by the kernel and by the limit of its control group; None: unknown."""
    found = [value for value in (_by_kernel(), _by_control_group()) if value is not None]
    return min(found, default=None)


def _by_kernel() -> int | None:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _by_control_group() -> int | None:
    limit, used = (next(iter(_lines(f"/sys/fs/cgroup/memory.{name}")), "") for name in ("max", "current"))
    return int(limit) - int(used) if limit.isdigit() and used.isdigit() else None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):  # of another system
        return []
