"""What must hold of the compose files; no engine is needed to see it."""

import re
from typing import Any, Final

import pytest
import yaml

from api_gateway.settings import GatewaySettings
from ledger_reconciler.settings import ReconcilerSettings
from notification_service.settings import NotificationSettings
from payment_gateway.settings import PaymentSettings
from shared.serve import DRAIN_SECONDS
from shared.settings import ROOT, DatabaseSettings, Settings
from transaction_service.settings import TransactionSettings
from user_service.settings import UserSettings
from wallet_service.settings import WalletSettings

README_PORTS: Final = {
    "api-gateway": 8000,
    "user-service": 8001,
    "wallet-service": 8002,
    "transaction-service": 8003,
    "payment-gateway": 8004,
    "notification-service": 8005,
    "postgres": 5432,
    "mongodb": 27017,
    "redis": 6379,
    "kafka": 9092,
    "prometheus": 9090,
    "grafana": 3000,
}
KINDS: Final[dict[str, type[Settings]]] = {
    "api-gateway": GatewaySettings,
    "user-service": UserSettings,
    "wallet-service": WalletSettings,
    "transaction-service": TransactionSettings,
    "payment-gateway": PaymentSettings,
    "notification-service": NotificationSettings,
    "reconciler": ReconcilerSettings,
}
MIGRATED: Final = [name for name in KINDS if name not in {"api-gateway", "reconciler"}]
MIGRATIONS: Final = [f"{name}-migrations" for name in MIGRATED]
# On a laptop with one broker, and nobody else on its Redis, there is nothing to choose about these.
NOT_PASSED_ON: Final = {
    "redis_key_prefix",
    "kafka_topic_prefix",
    "kafka_producer_idempotence",
    "kafka_replication_factor",
    # Mailpit takes every mail as it comes.
    "mail_folder",
    "smtp_security",
    "smtp_username",
    "smtp_password",
}
# Where a container finds what it needs, and as whom it comes there.
LITERAL: Final = re.compile(r".*_(host|port|url)|kafka_bootstrap_servers|migrate_at_start")
LOGINS: Final = {"postgres_user", "mongo_user", "mongo_password"}
DEFAULTED: Final = re.compile(r"\$\{([A-Z_]+):-([^}]*)\}")
SECRET: Final = re.compile(r".*(PASSWORD|PASS|SECRET_KEY|PRIVATE_KEY)")


class _Loader(yaml.SafeLoader):
    """Takes compose's own tags for what stands behind them."""


def _behind_a_tag(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else None


_Loader.add_multi_constructor("!", _behind_a_tag)


def read(name: str) -> Any:
    return yaml.load((ROOT / name).read_text(), _Loader)  # noqa: S506 - a SafeLoader


PLATFORM: Final[dict[str, Any]] = read("docker-compose.yml")["services"]
TEST_STACK: Final[dict[str, Any]] = read("docker-compose.test.yml")["services"]


def by_default(text: str) -> str:
    """What compose makes of a value when no variable is set."""
    return DEFAULTED.sub(lambda match: match[2], text)


def published(services: dict[str, Any]) -> dict[str, list[str]]:
    return {name: each["ports"] for name, each in services.items() if "ports" in each}


def test_names_and_ports_are_those_of_the_readme() -> None:
    found = {name: int(ports[0].split(":")[-1]) for name, ports in published(PLATFORM).items()}

    assert README_PORTS.items() <= found.items()
    assert "zookeeper" in PLATFORM


def test_only_the_gateway_listens_beyond_this_machine() -> None:
    beyond = {
        name for name, ports in published(PLATFORM).items() for port in ports if not port.startswith("127.0.0.1:")
    }

    assert beyond == {"api-gateway"}


def test_the_engines_are_those_that_the_platform_is_written_for() -> None:
    assert {name: PLATFORM[name]["image"] for name in ("postgres", "mongodb", "redis")} == {
        "postgres": "postgres:15",
        "mongodb": "mongo:7",
        "redis": "redis:7",
    }
    assert PLATFORM["kafka"]["image"].startswith("confluentinc/cp-kafka:7.9.")  # Kafka 3.9
    assert read("docker-compose.kraft.yml")["services"]["kafka"]["image"].startswith("apache/kafka:4.")


@pytest.mark.parametrize("name", PLATFORM)
def test_each_service_has_limits_a_health_check_and_short_logs(name: str) -> None:
    service = PLATFORM[name]
    ours = service["image"].startswith("payment-system/") and name not in MIGRATIONS

    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert ours or "healthcheck" in service  # ours bring their own


@pytest.mark.parametrize("name", [*KINDS, *MIGRATIONS])
def test_ours_are_confined(name: str) -> None:
    service = PLATFORM[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "env_file" not in service


@pytest.mark.parametrize("name", KINDS)
def test_a_service_may_end_what_it_has_begun(name: str) -> None:
    assert int(PLATFORM[name]["stop_grace_period"].removesuffix("s")) > DRAIN_SECONDS


@pytest.mark.parametrize("name", KINDS)
def test_a_service_is_told_what_it_has_settings_for(name: str) -> None:
    given = PLATFORM[name]["environment"]
    fields = set(KINDS[name].model_fields)

    assert {variable.lower() for variable in given} == fields - NOT_PASSED_ON
    literals = {variable.lower() for variable, value in given.items() if "$" not in value}
    assert literals - {"postgres_user"} == {field for field in fields if LITERAL.fullmatch(field)}


@pytest.mark.parametrize("name", KINDS)
def test_without_an_env_file_the_defaults_are_those_of_the_settings(name: str) -> None:
    given: dict[str, Any] = {
        variable.lower(): by_default(value) for variable, value in PLATFORM[name]["environment"].items()
    }
    settings, defaults = KINDS[name](_env_file=None, **given), KINDS[name](_env_file=None)

    different = {field for field in given if getattr(settings, field) != getattr(defaults, field)}

    assert {field for field in different if not LITERAL.fullmatch(field)} <= LOGINS


@pytest.mark.parametrize("name", MIGRATED)
def test_a_service_has_a_login_of_its_own_and_waits_for_its_schema(name: str) -> None:
    kind = KINDS[name]
    assert issubclass(kind, DatabaseSettings)
    role = kind(_env_file=None).role
    migrations = PLATFORM[f"{name}-migrations"]

    assert PLATFORM[name]["environment"]["POSTGRES_USER"] == role
    assert f"alter role {role} login password" in (ROOT / "infrastructure/postgres/logins.sql").read_text()
    assert PLATFORM[name]["depends_on"][f"{name}-migrations"] == {"condition": "service_completed_successfully"}
    assert migrations["image"] == PLATFORM[name]["image"]
    assert by_default(migrations["environment"]["POSTGRES_USER"]) == "paymentuser"


@pytest.mark.parametrize("file", ["docker-compose.yml", "docker-compose.test.yml", "docker-compose.kraft.yml"])
def test_secrets_come_from_outside_and_places_do_not(file: str) -> None:
    for name, service in read(file)["services"].items():
        for variable, value in ((service or {}).get("environment") or {}).items():
            if SECRET.fullmatch(variable):
                assert DEFAULTED.fullmatch(value), (name, variable)
            if variable.endswith(("_HOST", "_PORT", "_URL", "_SERVERS")):
                assert "$" not in value, (name, variable)


def test_up_returns_when_the_gateway_answers() -> None:
    for last in ("prometheus", "grafana"):
        assert PLATFORM[last]["depends_on"]["api-gateway"] == {"condition": "service_healthy"}


def test_what_a_service_waits_for_is_there() -> None:
    for services in (PLATFORM, TEST_STACK):
        for name in services:
            assert set(PLATFORM[name].get("depends_on", {})) <= set(services), name


def test_data_is_kept_and_zookeepers_beside_kafkas() -> None:
    kept = {volume.split(":")[0] for each in PLATFORM.values() for volume in each.get("volumes", [])}

    assert set(read("docker-compose.yml")["volumes"]) <= kept
    assert {"postgres", "mongodb", "redis", "kafka", "zookeeper", "zookeeper-log"} <= kept


def test_the_test_stack_is_a_platform_beside_the_other_one() -> None:
    ports = [port for each in published(TEST_STACK).values() for port in each]
    others = {port.split(":")[-2] for each in published(PLATFORM).values() for port in each}

    assert read("docker-compose.test.yml")["name"] == "payment-system-test"
    assert set(KINDS) <= set(TEST_STACK)
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert not {port.split(":")[1] for port in ports} & others
    assert set(published(TEST_STACK)) == {name for name in TEST_STACK if "ports" in PLATFORM[name]}


def test_the_test_stack_keeps_nothing_and_counts_no_requests() -> None:
    limits = TEST_STACK["api-gateway"]["environment"]
    for name, service in TEST_STACK.items():
        places = [volume.split(":")[1] for volume in PLATFORM[name].get("volumes", []) if volume[0] != "."]
        if places:
            assert service["volumes"] == [], name
            assert [place.split(":")[0] for place in service["tmpfs"]] == places, name

    assert {limits[name] for name in ("RATE_LIMIT_PER_MINUTE", "RATE_LIMIT_LOGIN_PER_MINUTE")} == {"0"}


def test_prometheus_looks_at_all_services_but_the_gateway() -> None:
    jobs = read("infrastructure/prometheus/prometheus.yml")["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}

    assert targets["services"] == [
        f"{name}:{PLATFORM[name]['ports'][0].split(':')[-1]}" for name in KINDS if name != "api-gateway"
    ]
    assert {"postgres", "redis", "prometheus"} <= set(targets)
