import stat
import subprocess
from pathlib import Path

import pytest

from infrastructure.embedded import environment


@pytest.mark.parametrize("engine", environment.ENGINES)
def test_an_engine_is_embedded_unless_the_environment_names_its_server(engine: str) -> None:
    variable = environment.HOSTS[engine]

    assert environment.is_embedded(engine, {})
    assert environment.is_embedded(engine, {variable: ""})
    assert not environment.is_embedded(engine, {variable: "db.example.com"})


def test_somebody_elses_server_is_reached_by_its_own_variables_and_the_readmes_for_the_rest() -> None:
    environ = {"POSTGRES_HOST": "db", "POSTGRES_PORT": "5433", "POSTGRES_DB": "", "REDIS_HOST": "cache"}

    assert environment.given("postgres", environ) == {
        "POSTGRES_HOST": "db",
        "POSTGRES_PORT": "5433",
        "POSTGRES_USER": "paymentuser",
        "POSTGRES_PASSWORD": "paymentpass",
        "POSTGRES_DB": "payment_system",
    }
    assert environment.given("redis", environ) == {"REDIS_HOST": "cache", "REDIS_PORT": "6379", "REDIS_DB": "0"}


def test_the_file_gives_a_shell_the_same_values_and_its_owner_alone_may_read_it(tmp_path: Path) -> None:
    file = tmp_path / "env"
    environment.write(file, {"POSTGRES_PASSWORD": "it's $HOME; #1", "MONGO_USER": ""})

    shell = subprocess.run(
        ["sh", "-c", '. "$1"; printf "%s|%s" "$POSTGRES_PASSWORD" "$MONGO_USER"', "sh", str(file)],
        capture_output=True,
        text=True,
        check=True,
    )

    assert shell.stdout == "it's $HOME; #1|"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
