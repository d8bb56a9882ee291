"""What an image installs: `python infrastructure/images/requirements.py services/user-service/requirements.txt`.

Prints what `shared` needs (from the pyproject.toml of the working directory) and what the service itself needs, one
requirement a line. What stands under `# its tests` stays out.
"""

import sys
import tomllib
from pathlib import Path

TESTS = "# its tests"


def requirements(pyproject: Path, service: Path) -> list[str]:
    """The run-time requirements of a service whose requirements.txt this is."""
    of_shared: list[str] = tomllib.loads(pyproject.read_text())["project"]["dependencies"]
    at_run_time, _, _ = service.read_text().partition(TESTS)
    lines = (line.strip() for line in at_run_time.splitlines())
    return of_shared + [line for line in lines if line and not line.startswith(("#", "-"))]


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in requirements(Path("pyproject.toml"), Path(sys.argv[1])))
