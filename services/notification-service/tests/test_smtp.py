"""SMTP with encryption and login, and a process that is killed."""

import asyncio
import ipaddress
import os
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import AuthResult, LoginPassword
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from notification_service.app import FOLDER
from notification_service.testing import HOST, MailServer, Post, Process, contact_event, free_port, listening
from shared.ids import new_id
from shared.settings import ROOT
from shared.testing.waiting import eventually

USERNAME, PASSWORD = "sender", "correct horse"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a certificate of 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return file


@pytest.fixture
def encrypted(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


def check_login(_: Any, __: Any, ___: Any, ____: str, given: Any) -> AuthResult:
    """Lets one sender in."""
    right = LoginPassword(USERNAME.encode(), PASSWORD.encode())
    return AuthResult(success=given == right, handled=False)


async def test_starttls_and_login(
    post: Post,
    process: Process,
    mail_server: MailServer,
    encrypted: ssl.SSLContext,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alice = new_id()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    await post.happened(contact_event(alice))
    options = {
        "tls_context": encrypted,
        "require_starttls": True,
        "authenticator": check_login,
        "auth_required": True,
    }
    login = {"smtp_security": "starttls", "smtp_username": USERNAME}
    async with listening(mail_server, **options):
        async with process(**login, smtp_password="wrong"):

            async def refused() -> bool:
                return await post.rows(alice) == [("welcome", "email", "pending", "smtp_535")]

            await eventually(refused)
        assert mail_server.mails == []
        async with process(**login, smtp_password=PASSWORD):
            assert await post.ended(alice) == [("welcome", "email", "sent", None)]
    assert len(mail_server.mails) == 1


async def test_a_server_that_nobody_vouches_for_gets_neither_mail_nor_password(
    post: Post,
    process: Process,
    mail_server: MailServer,
    encrypted: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    alice = new_id()
    await post.happened(contact_event(alice))
    async with (
        listening(mail_server, tls_context=encrypted),
        process(smtp_security="starttls", smtp_username=USERNAME, smtp_password=PASSWORD),
    ):

        async def refused() -> bool:
            return await post.rows(alice) == [("welcome", "email", "pending", "smtp_unavailable")]

        await eventually(refused)
    assert mail_server.mails == []
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.text


async def test_a_server_that_cannot_encrypt_gets_nothing_where_it_has_to(
    post: Post, process: Process, mail_server: MailServer
) -> None:
    alice = new_id()
    await post.happened(contact_event(alice))
    async with listening(mail_server), process(smtp_security="starttls"):

        async def put_off() -> bool:
            [row] = await post.rows(alice)
            return row[3] is not None

        await eventually(put_off)
        assert await post.rows(alice) == [("welcome", "email", "pending", "smtp_unavailable")]
    assert mail_server.mails == []


# ------------------------------------------------------------------------------------ killed


@pytest.fixture
async def start_service(post: Post, mail_server: MailServer) -> AsyncIterator[Any]:
    """Starts the service as a process of its own."""
    started: list[asyncio.subprocess.Process] = []

    async def start() -> asyncio.subprocess.Process:
        environment = (
            os.environ
            | post.sandbox.environment
            | {
                "ENV_FILE": "",
                "SMTP_HOST": HOST,
                "SMTP_PORT": str(mail_server.port),
                "NOTIFICATION_RETRY_SECONDS": "0.1",
                "NOTIFICATION_RETRY_MAX_SECONDS": "0.5",
                "PYTHONPATH": f"{ROOT}:{FOLDER}",
            }
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "shared.serve",
            "--port",
            str(free_port()),
            cwd=FOLDER,
            env=environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
    await asyncio.gather(*(process.wait() for process in started))


async def test_after_a_kill_in_the_middle_everybody_has_their_mail_and_a_repeat_is_recognisable(
    post: Post, start_service: Any, mail_server: MailServer
) -> None:
    people = [new_id() for _ in range(60)]
    await post.happened(*map(contact_event, people))
    async with listening(mail_server):
        victim = await start_service()

        async def some_sent() -> bool:
            return len(mail_server.mails) >= 20

        await eventually(some_sent, 60)
        victim.kill()
        await victim.wait()
        under_way = await post.sql(
            "update notifications.notifications set next_attempt_at = now() "  # the lease is over
            "where state = 'pending' and attempts > 0 returning id"
        )
        await start_service()
        assert {row[2] for row in await post.ended(*people, limit_seconds=60)} == {"sent"}

    by_id = Counter(mail["Message-ID"] for mail in mail_server.mails)
    assert len(by_id) == len(people)
    assert {mail["X-RcptTo"] for mail in mail_server.mails} == {f"{user_id}@example.com" for user_id in people}
    assert sum(by_id.values()) - len(by_id) <= len(under_way) <= 8
