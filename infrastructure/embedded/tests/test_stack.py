import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pymongo
import pymongo.errors
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from infrastructure.embedded import Stack, processes
from infrastructure.embedded.engine import exchange
from infrastructure.embedded.environment import ENGINES
from infrastructure.embedded.errors import EmbeddedError
from infrastructure.embedded.install import CHECKOUT
from infrastructure.embedded.waiting import wait_until

LIMIT_SECONDS = 20.0
ON_DISK = b"*2\r\n:1\r\n:0\r\n"

Variables = dict[str, str]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("stack"), ports="free", detached=False, environ={})
    yield stack
    stack.stop()


@pytest.fixture(scope="module")
def variables(stack: Stack) -> Variables:
    return stack.start()


async def postgres(variables: Variables) -> asyncpg.Connection:
    return await asyncpg.connect(
        host=variables["POSTGRES_HOST"],
        port=int(variables["POSTGRES_PORT"]),
        user=variables["POSTGRES_USER"],
        password=variables["POSTGRES_PASSWORD"],
        database=variables["POSTGRES_DB"],
    )


def valkey(variables: Variables, command: str, answer: str) -> None:
    """Send one command in Redis' inline form; the answer must be `answer`."""
    expected = answer.encode()
    assert exchange(int(variables["REDIS_PORT"]), f"{command}\r\n".encode(), len(expected)) == expected


def mongo(variables: Variables) -> pymongo.MongoClient[dict[str, object]]:
    return pymongo.MongoClient(variables["MONGO_HOST"], int(variables["MONGO_PORT"]), serverSelectionTimeoutMS=5000)


def kill(stack: Stack, engine: str) -> None:
    process = stack.process(engine)
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    assert wait_until(lambda: stack.process(engine) is None, LIMIT_SECONDS)


async def test_the_login_owns_the_database_may_make_roles_and_is_no_superuser(variables: Variables) -> None:
    connection = await postgres(variables)
    try:
        row = await connection.fetchrow(
            "SELECT rolsuper, rolcreaterole, rolcreatedb, pg_get_userbyid(datdba) AS owner, datcollate, "
            "pg_encoding_to_char(encoding) AS encoding FROM pg_roles, pg_database "
            "WHERE rolname = current_user AND datname = current_database()"
        )
    finally:
        await connection.close()

    assert row is not None
    assert dict(row) == {
        "rolsuper": False,
        "rolcreaterole": True,
        "rolcreatedb": True,
        "owner": "paymentuser",
        "datcollate": "C",
        "encoding": "UTF8",
    }


@pytest.mark.parametrize(("user", "password"), [("paymentuser", "wrong"), ("postgres", ""), ("postgres", "postgres")])
async def test_postgres_lets_nobody_in_without_the_right_password(
    variables: Variables, user: str, password: str
) -> None:
    with pytest.raises(asyncpg.PostgresError, match=r"authentication failed|no password|empty password"):
        await postgres(variables | {"POSTGRES_USER": user, "POSTGRES_PASSWORD": password})


async def test_rows_are_there_again_after_a_kill_in_the_middle_of_a_query(stack: Stack, variables: Variables) -> None:
    connection = await postgres(variables)
    await connection.execute("CREATE TABLE survivors (id int)")
    await connection.execute("INSERT INTO survivors VALUES (1)")
    busy = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
    watcher = await postgres(variables)
    query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
    async with asyncio.timeout(LIMIT_SECONDS):
        while await watcher.fetchval(query) == 0:
            pass
    kill(stack, "postgres")
    with pytest.raises((asyncpg.PostgresError, OSError, asyncpg.InterfaceError)):
        await busy
    connection.terminate()
    watcher.terminate()

    assert stack.start({"postgres"})["POSTGRES_PORT"] == variables["POSTGRES_PORT"]

    connection = await postgres(variables)
    try:
        assert await connection.fetchval("SELECT count(*) FROM survivors") == 1
    finally:
        await connection.close()


def test_postgres_starts_beside_a_lock_file_that_names_a_stranger(stack: Stack, variables: Variables) -> None:
    kill(stack, "postgres")
    [lock] = [file for folder in stack.data_directories() for file in folder.glob("cluster/postmaster.pid")]
    lines = lock.read_text().splitlines()
    lock.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")

    assert stack.start({"postgres"})["POSTGRES_PORT"] == variables["POSTGRES_PORT"]


async def test_a_server_whose_record_is_lost_is_replaced_on_the_same_data(stack: Stack, variables: Variables) -> None:
    lost = stack.process("postgres")
    assert lost is not None
    stack.record("postgres").unlink()

    stack.start({"postgres"})

    assert wait_until(lambda: not processes.is_running(lost), LIMIT_SECONDS)
    found = stack.process("postgres")
    assert found is not None
    assert found.pid != lost.pid


def test_keys_and_documents_are_there_again_after_a_kill(stack: Stack, variables: Variables) -> None:
    valkey(variables, "SET survivor yes", "+OK\r\n")
    assert wait_until(
        lambda: exchange(int(variables["REDIS_PORT"]), b"WAITAOF 1 0 1500\r\n", len(ON_DISK)) == ON_DISK,
        LIMIT_SECONDS,
    )
    with mongo(variables) as client:
        client["payment_logs"]["survivors"].insert_one({"_id": "one"})
    kill(stack, "redis")
    kill(stack, "mongodb")

    again = stack.start({"redis", "mongodb"})

    assert again.items() <= variables.items()
    valkey(variables, "GET survivor", "$3\r\nyes\r\n")
    with mongo(variables) as client:
        assert client["payment_logs"]["survivors"].find_one() == {"_id": "one"}


def test_a_unique_index_of_the_document_server_holds(variables: Variables) -> None:
    with mongo(variables) as client:
        collection = client["payment_logs"]["positions"]
        collection.create_index("position", unique=True)
        collection.insert_one({"_id": "a", "position": 1})

        with pytest.raises(pymongo.errors.DuplicateKeyError):
            collection.insert_one({"_id": "b", "position": 1})


async def test_a_message_is_read_back_from_a_broker_that_was_killed_before(
    stack: Stack, variables: Variables
) -> None:
    kill(stack, "kafka")
    assert stack.start({"kafka"}).items() <= variables.items()
    servers = variables["KAFKA_BOOTSTRAP_SERVERS"]
    assert variables["KAFKA_PRODUCER_IDEMPOTENCE"] == "false"

    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=False)
    await producer.start()
    try:
        await producer.send_and_wait("transactions.events", b"paid", key=b"t1")
    finally:
        await producer.stop()
    consumer = AIOKafkaConsumer("transactions.events", bootstrap_servers=servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            message = await consumer.getone()
    finally:
        await consumer.stop()

    assert (message.key, message.value) == (b"t1", b"paid")


def test_starting_what_runs_changes_nothing(stack: Stack, variables: Variables) -> None:
    before = {name: stack.process(name) for name in ENGINES}

    assert stack.start() == variables

    assert stack.started == set()
    assert {name: stack.process(name) for name in ENGINES} == before


def test_data_survives_a_stop_and_goes_with_its_removal(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "stack", ports="free", environ={"REDIS_DB": "3"})
    try:
        variables = stack.start({"redis"})
        assert variables["REDIS_DB"] == "3"
        valkey(variables, "SET survivor yes", "+OK\r\n")
        stack.stop()
        assert stack.process("redis") is None
        valkey(stack.start({"redis"}), "GET survivor", "$3\r\nyes\r\n")
    finally:
        stack.stop()


def test_an_engine_the_environment_names_is_not_started(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "stack", environ={"REDIS_HOST": "cache.example.com", "REDIS_PORT": "6380"})

    assert stack.start({"redis"}) == {"REDIS_HOST": "cache.example.com", "REDIS_PORT": "6380", "REDIS_DB": "0"}
    assert stack.started == set()
    assert not stack.directory.exists()


def test_the_superusers_name_is_refused_for_the_login(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match="POSTGRES_USER=postgres"):
        Stack(tmp_path, environ={"POSTGRES_USER": "postgres"}).start({"postgres"})


OWNER = """
import signal, sys
from pathlib import Path
from infrastructure.embedded import Stack

stack = Stack(Path(sys.argv[1]), ports="free", detached=False, durable=False, environ={})
stack.start()
print("up", *stack.data_directories(), flush=True)
signal.pause()
"""


def test_engines_and_their_data_go_when_their_owner_is_killed(tmp_path: Path) -> None:
    directory = tmp_path / "stack"
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(directory)], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        word, *folders = owner.stdout.readline().split()
        assert word == "up"
        stack = Stack(directory)
        engines = [process for name in ENGINES if (process := stack.process(name)) is not None]
        assert len(engines) == len(ENGINES)

        owner.kill()

    assert wait_until(lambda: not any(map(processes.is_running, engines)), LIMIT_SECONDS)
    left = [directory, *map(Path, folders)]
    assert wait_until(lambda: not any(folder.exists() for folder in left), LIMIT_SECONDS)
