"""Every mail arrives once, whatever the mail server does."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from notification_service.domain import Channel
from notification_service.testing import (
    MailServer,
    Post,
    Process,
    completed_event,
    contact_event,
    listening,
    sign_in_event,
)
from shared.events import UserClosed, UserDisabled, UserUpdated
from shared.ids import new_id
from shared.testing.waiting import eventually

NO_SMS = {"sms_provider": "none"}


def address(user_id: object) -> str:
    return f"{user_id}@example.com"


async def test_a_mail_comes_out_of_a_real_server(post: Post, process: Process, mail_server: MailServer) -> None:
    alice, bob = new_id(), new_id()
    await post.happened(contact_event(alice), contact_event(bob), completed_event("transfer", alice, bob))

    async with listening(mail_server), process():
        assert await post.ended(alice, bob) == [
            ("money_received", "email", "sent", None),
            ("money_sent", "email", "sent", None),
            ("welcome", "email", "sent", None),
            ("welcome", "email", "sent", None),
        ]

    assert sorted(mail["Subject"] for mail in mail_server.to(address(alice))) == ["Welcome", "You sent 50.00 USD"]
    assert sorted(mail["Subject"] for mail in mail_server.to(address(bob))) == ["Welcome", "You received 50.00 USD"]


async def test_an_event_that_comes_again_is_not_told_again(post: Post) -> None:
    alice, bob = new_id(), new_id()
    events = [contact_event(alice), completed_event("transfer", alice, bob)]
    await asyncio.gather(*(post.happened(*events) for _ in range(5)))
    await post.happened(*events, *events)

    assert [row[:2] for row in await post.rows(alice, bob)] == [
        ("money_received", "email"),
        ("money_sent", "email"),
        ("welcome", "email"),
    ]


async def test_while_the_server_is_down_everything_waits_and_then_comes_once(
    post: Post, process: Process, mail_server: MailServer
) -> None:
    people = [new_id() for _ in range(30)]
    async with process(), process():
        await post.happened(*map(contact_event, people))

        async def tried() -> bool:
            found = await post.sql(
                "select count(*) from notifications.notifications where attempts > 0 and user_id = any($1)", people
            )
            return bool(found[0][0])

        await eventually(tried)
        assert {row[2] for row in await post.rows(*people)} == {"pending"}
        async with listening(mail_server):
            assert {row[2] for row in await post.ended(*people, limit_seconds=60)} == {"sent"}

    assert Counter(mail["X-RcptTo"] for mail in mail_server.mails) == Counter(map(address, people))


async def test_several_processes_share_the_work_and_repeat_none(
    post: Post, process: Process, mail_server: MailServer
) -> None:
    people = [new_id() for _ in range(100)]
    async with listening(mail_server), process(), process(), process():
        await post.happened(*map(contact_event, people))
        await post.ended(*people, limit_seconds=60)

    assert Counter(mail["X-RcptTo"] for mail in mail_server.mails) == Counter(map(address, people))


@pytest.mark.parametrize("step", ["at_rcpt", "at_data"])
async def test_a_refusal_for_the_time_being_is_tried_again(
    post: Post, process: Process, mail_server: MailServer, step: str
) -> None:
    alice, answers = new_id(), iter(["451 try later", "421 too busy", None])
    setattr(mail_server, step, lambda _: next(answers))
    await post.happened(contact_event(alice))

    async with listening(mail_server), process():
        assert await post.ended(alice) == [("welcome", "email", "sent", None)]

    assert len(mail_server.to(address(alice))) == 1
    [row] = await post.sql("select attempts from notifications.notifications where user_id = $1", alice)
    assert row["attempts"] == 3


@pytest.mark.parametrize(("step", "code"), [("at_rcpt", 550), ("at_data", 554)])
async def test_a_refusal_for_good_is_not_tried_again_and_hinders_nobody(
    post: Post, process: Process, mail_server: MailServer, step: str, code: int
) -> None:
    alice, bob, tried = new_id(), new_id(), []

    def answer(who: str) -> str | None:
        tried.append(who)
        return f"{code} no such user" if who == address(alice) else None

    setattr(mail_server, step, answer)
    await post.happened(contact_event(alice), contact_event(bob))

    async with listening(mail_server), process():
        assert await post.ended(alice, bob) == [
            ("welcome", "email", "failed", f"smtp_{code}"),
            ("welcome", "email", "sent", None),
        ]

    assert Counter(tried) == {address(alice): 1, address(bob): 1}


async def test_it_is_given_up_after_a_time_with_its_reason(
    post: Post, process: Process, mail_server: MailServer
) -> None:
    alice = new_id()
    mail_server.at_rcpt = lambda _: "450 mailbox busy"
    await post.happened(contact_event(alice))

    async with listening(mail_server), process(notification_give_up_hours=0.0001):
        assert await post.ended(alice) == [("welcome", "email", "failed", "smtp_450")]

    [row] = await post.sql("select attempts from notifications.notifications where user_id = $1", alice)
    assert row["attempts"] >= 3


async def test_what_was_accepted_and_not_recorded_is_recognised_by_its_message_id(
    post: Post, process: Process, mail_server: MailServer
) -> None:
    """The window that SMTP leaves: the server has the mail, and the word of it was lost with the connection."""
    alice = new_id()
    mail_server.silent = asyncio.Event()
    await post.happened(contact_event(alice))

    async with process():
        async with listening(mail_server):

            async def taken() -> bool:
                return bool(mail_server.mails)

            await eventually(taken)
        assert [row[2] for row in await post.rows(alice)] == ["pending"]
        mail_server.silent.set()
        async with listening(mail_server):
            assert await post.ended(alice) == [("welcome", "email", "sent", None)]

    first, second = mail_server.to(address(alice))
    assert first["Message-ID"] == second["Message-ID"]
    assert first["Date"] == second["Date"]


async def test_a_service_that_stops_ends_what_it_has_begun(
    post: Post, process: Process, mail_server: MailServer
) -> None:
    alice = new_id()
    mail_server.silent = asyncio.Event()
    await post.happened(contact_event(alice))
    async with listening(mail_server):
        async with process():

            async def taken() -> bool:
                return bool(mail_server.mails)

            await eventually(taken)
            asyncio.get_running_loop().call_later(0.5, mail_server.silent.set)
        assert await post.rows(alice) == [("welcome", "email", "sent", None)]
        async with process():
            await asyncio.sleep(0)  # what was sent is not due
    assert len(mail_server.mails) == 1


async def test_the_word_that_a_mail_went_out_outlasts_trouble_in_the_database(
    post: Post, process: Process, mail_server: MailServer
) -> None:
    alice = new_id()
    mail_server.silent = asyncio.Event()
    await post.happened(contact_event(alice))
    async with listening(mail_server), process():

        async def taken() -> bool:
            return bool(mail_server.mails)

        await eventually(taken)
        connection = await post.sandbox.connect()
        async with connection.transaction():
            await connection.execute("select from notifications.notifications where user_id = $1 for update", alice)
            mail_server.silent.set()
            attempts: set[tuple[object, ...]] = set()

            async def in_vain() -> bool:
                waiting = await connection.fetch(
                    "select pid, query_start from pg_stat_activity "
                    "where wait_event_type = 'Lock' and datname = current_database()"
                )
                attempts.update(map(tuple, waiting))
                return len(attempts) > 1

            await eventually(in_vain)
        await connection.close()
        assert await post.ended(alice) == [("welcome", "email", "sent", None)]
    assert len(mail_server.mails) == 1


async def test_who_is_not_known_yet_is_waited_for(post: Post, process: Process, mail_server: MailServer) -> None:
    alice = new_id()
    await post.happened(completed_event("deposit", alice))
    async with listening(mail_server), process(notification_retry_seconds=3600, notification_retry_max_seconds=3600):

        async def waits() -> bool:
            return ("deposit", "email", "pending", "contact_unknown") in await post.rows(alice)

        await eventually(waits)
        await post.happened(contact_event(alice))
        assert ("deposit", "email", "sent", None) in await post.ended(alice)

    assert {mail["Subject"] for mail in mail_server.to(address(alice))} == {"Welcome", "You deposited 50.00 USD"}


async def test_who_stays_unknown_is_given_up(post: Post, process: Process) -> None:
    nobody = new_id()
    await post.happened(completed_event("deposit", nobody))
    await post.sql(
        "update notifications.notifications set created_at = now() - interval '2 hours' where user_id = $1", nobody
    )

    async with process():
        assert await post.ended(nobody) == [("deposit", "email", "failed", "contact_unknown")]


async def test_the_newest_contact_counts_in_whatever_order_events_come(
    post: Post, process: Process, mail_server: MailServer
) -> None:
    alice = new_id()
    newest = contact_event(alice, 5, UserUpdated, email="new@example.com")
    older = contact_event(alice, 3, UserUpdated, email="old@example.com")
    await post.happened(newest, older)
    await post.happened(older)
    await post.happened(contact_event(alice, 1))
    await post.happened(newest)

    [row] = await post.sql("select email, sequence from notifications.contacts where user_id = $1", alice)

    assert tuple(row) == ("new@example.com", 5)


async def test_the_closed_hear_by_mail_of_their_money_and_no_more(
    post: Post, process: Process, mail_server: MailServer
) -> None:
    closed, disabled = new_id(), new_id()
    await post.happened(
        contact_event(closed),
        contact_event(closed, 2, UserClosed, status="closed"),
        completed_event("withdrawal", closed),
        contact_event(disabled, 2, UserDisabled, status="disabled"),
        sign_in_event(disabled, 3),
    )

    async with listening(mail_server), process():
        assert await post.ended(closed) == [
            ("welcome", "email", "skipped", "account_closed"),
            ("withdrawal", "email", "sent", None),
            ("withdrawal", "sms", "skipped", "account_closed"),
        ]
        assert await post.ended(disabled) == [
            ("new_device", "email", "sent", None),
            ("new_device", "sms", "skipped", "account_disabled"),
        ]


async def test_without_a_phone_or_a_provider_no_text_message_goes_out(post: Post, process: Process) -> None:
    alice, bob = new_id(), new_id()
    await post.happened(contact_event(alice, phone=""), sign_in_event(alice))
    post.notifications.arrivals.pop(Channel.SMS)
    try:
        await post.happened(contact_event(bob), sign_in_event(bob))
    finally:
        post.notifications.arrivals[Channel.SMS] = asyncio.Event()

    async with process(smtp_host=""):
        assert ("new_device", "sms", "skipped", "no_phone") in await post.ended(alice)
        assert ("new_device", "sms", "skipped", "channel_off") in await post.ended(bob)


async def test_what_is_old_and_ended_is_forgotten(post: Post) -> None:
    old, waiting, new = new_id(), new_id(), new_id()
    await post.happened(*map(contact_event, (old, waiting, new)))
    await post.sql(
        "update notifications.notifications set state = 'failed', next_attempt_at = null where user_id = any($1)",
        [old, new],
    )
    await post.sql(
        "update notifications.notifications set created_at = now() - interval '91 days' where user_id = any($1)",
        [old, waiting],
    )

    assert await post.notifications.forget_old(90) == 1
    assert await post.notifications.forget_old(90) == 0

    assert [len(await post.rows(user_id)) for user_id in (old, waiting, new)] == [0, 1, 1]


async def test_without_a_mail_server_mails_are_files(post: Post, process: Process, tmp_path: Path) -> None:
    alice = new_id()
    await post.happened(contact_event(alice))
    async with process(smtp_host="", mail_folder=tmp_path / "mail"):
        await post.ended(alice)
        once = list((tmp_path / "mail").iterdir())
        await post.sql(
            "update notifications.notifications set state = 'pending', sent_at = null, next_attempt_at = now() "
            "where user_id = $1",
            alice,
        )
        await post.ended(alice)

    mine = [file for file in once if address(alice).encode() in file.read_bytes()]
    assert [file.suffix for file in mine] == [".eml"]
    assert [file for file in (tmp_path / "mail").iterdir() if address(alice).encode() in file.read_bytes()] == mine
