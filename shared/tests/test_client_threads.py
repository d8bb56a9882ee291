"""The thread behind the connections, in a process of its own, as there is one for all that a process does."""

import os
import subprocess
import sys

import pytest

LOOK = """
import asyncio, os
from pathlib import Path
from shared.http.client import plain_client

def policies(name):
    tasks = Path("/proc/self/task").iterdir()
    return [os.sched_getscheduler(int(task.name)) for task in tasks if (task / "comm").read_text().strip() == name]

async def main():
    client = plain_client(1)
    print(policies("pyreqwest") == [os.SCHED_BATCH], os.sched_getscheduler(0) == os.SCHED_OTHER)
    await client.close()

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="only Linux has batch threads")
def test_the_thread_of_the_connections_interrupts_nobody_and_the_process_is_as_it_was() -> None:
    found = subprocess.run(
        [sys.executable, "-c", LOOK],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert found.stdout.split() == ["True", "True"], found.stderr
