"""A process that is told to end while it still reads its code ends: as PID 1 of a container it is easily deaf."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

OWN_PIDS = ["unshare", *(() if os.geteuid() == 0 else ("--user", "--map-root-user")), "--pid", "--fork", "--kill-child"]


@pytest.mark.parametrize("role", ["router", "operator", "autoscaler", "route-sync"])
def test_a_first_process_that_is_ended_before_it_has_read_its_code_ends(tmp_path: Path, role: str) -> None:
    (tmp_path / "click.py").write_text("import time\nprint('reads its code', flush=True)\ntime.sleep(300)\n")
    command = [*OWN_PIDS, sys.executable, "-m", "llmfleet", role]
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}) as outer:
        try:
            assert outer.stdout and outer.stdout.readline() == b"reads its code\n"
            (first,) = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
            os.kill(int(first), signal.SIGTERM)
            assert outer.wait(60) == 128 + signal.SIGTERM
        finally:
            outer.kill()
