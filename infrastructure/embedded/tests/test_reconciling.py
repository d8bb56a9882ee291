from pathlib import Path

import pytest

from infrastructure.embedded import environment
from infrastructure.embedded.reconciling import NothingToReconcileError, variables

WRITTEN = {
    "POSTGRES_HOST": "127.0.0.1",
    "POSTGRES_PORT": "25432",
    "POSTGRES_PASSWORD": "it's a secret",  # pragma: allowlist secret - nobody's
    "MONGO_HOST": "127.0.0.1",
    "MONGO_USER": "",
    "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9092",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What `make up` has written."""
    environment.write(tmp_path / "env", WRITTEN)
    return tmp_path / "env"


def test_what_runs_is_found_by_what_make_up_wrote(file: Path) -> None:
    found = variables(file, {"PATH": "/bin"})

    wanted = {name: value for name, value in WRITTEN.items() if not name.startswith("KAFKA_")}
    assert found == {**wanted, "PATH": "/bin", "ENV_FILE": ""}


def test_a_database_that_the_environment_names_is_taken_instead_and_whole(file: Path) -> None:
    found = variables(file, {"POSTGRES_HOST": "db.example.com"})

    assert (found["POSTGRES_HOST"], found["POSTGRES_PORT"]) == ("db.example.com", "5432")
    assert found["POSTGRES_PASSWORD"] == environment.DEFAULTS["postgres"]["POSTGRES_PASSWORD"]
    assert found["MONGO_HOST"] == "127.0.0.1"


def test_without_a_platform_there_is_nothing_to_reconcile(tmp_path: Path) -> None:
    with pytest.raises(NothingToReconcileError, match="There is nothing to reconcile: run `make up` first") as raised:
        variables(tmp_path / "env", {})

    assert raised.value.status == 2
