import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

TWO_PROCESSES = """
import os, sys, time
from pathlib import Path
from blda_cli.runtime.process_group import process_group

other = os.fork()
os.environ["RANK"] = "0" if other else "1"
written = Path(sys.argv[1])
with process_group():
    if other:
        time.sleep(0.5)
        written.touch()
if not other:
    os._exit(0 if written.exists() else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
"""


def test_no_process_leaves_before_the_first_has_written(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path / "written")]
    assert subprocess.run(command, env={**os.environ, **group}, check=False, timeout=60).returncode == 0
