"""The fault tests end processes by handle, from a client that holds many streams."""

import subprocess
import sys
import time

from faults.ground import end_now

FILES = 1100  # select() takes no descriptor above 1023


def test_a_client_with_a_thousand_files_open_ends_a_process_and_knows_when():
    held = [open("/dev/null", "rb") for _ in range(FILES)]  # noqa: SIM115
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        before = time.time()
        death = end_now([process.pid])
        assert process.wait(60) == -9
        assert before <= death.killed <= death.dead <= time.time()
    finally:
        process.kill()
        process.wait()
        for file in held:
            file.close()
