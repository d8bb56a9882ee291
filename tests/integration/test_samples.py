"""The README's sample calls, exactly as they stand there."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import httpx
import pytest

README = Path(__file__).parents[2] / "README.md"
SAMPLES = {
    "register": "/users/register",
    "login": "/users/login",
    "wallet": "/wallets/create",
    "deposit": '"transaction_type": "deposit"',
    "transfer": '"transaction_type": "transfer"',
}
EMAIL = "user@example.com"


def tagged(email: str, tag: str) -> str:
    """The address with a tag, which makes it another one."""
    return email.replace("@", f"{tag}@")


def sample(name: str) -> str:
    """The one curl command of the README that holds the mark of this sample."""
    blocks: list[str] = re.findall(r"```bash\n(curl -X POST .*?)```", README.read_text(), re.DOTALL)
    return next(block for block in blocks if SAMPLES[name] in block)


async def run(client: httpx.AsyncClient, command: str) -> httpx.Response:
    """What curl would do with this command line."""
    words = iter(shlex.split(command.replace("\\\n", ""))[1:])
    method, url, headers, body = "GET", "", {}, b""
    for word in words:
        if word == "-X":
            method = next(words)
        elif word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name] = value
        elif word == "-d":
            body = next(words).replace("\n", "").encode()
        else:
            url = word
    assert url.startswith("http://localhost:8000/")
    return await client.request(method, url.removeprefix("http://localhost:8000"), headers=headers, content=body)


@pytest.fixture(scope="module")
async def calls(client: httpx.AsyncClient, address_tag: str) -> dict[str, httpx.Response]:
    """Each sample's answer, with the placeholders filled from the answers before."""
    values = {EMAIL: tagged(EMAIL, address_tag)}

    def filled(name: str, **more: str) -> str:
        command = sample(name)
        for placeholder, value in (values | more).items():
            command = command.replace(placeholder, value)
        return command

    answers = {"register": await run(client, filled("register")), "login": await run(client, filled("login"))}
    login = answers["login"].json()
    values |= {"YOUR_ACCESS_TOKEN": login["access_token"], "USER_ID": login["user"]["id"]}
    answers["wallet"] = await run(client, filled("wallet"))
    wallet_id = answers["wallet"].json()["id"]
    answers["deposit"] = await run(client, filled("deposit", WALLET_ID=wallet_id))
    receiver = {"email": tagged("receiver@example.com", address_tag), "password": "SecurePass123"}
    person = {"first_name": "Jane", "last_name": "Roe", "phone": "+1234567891"}
    await client.post("/users/register", json=receiver | person)
    login = (await client.post("/users/login", json=receiver)).json()
    theirs = await client.post(
        "/wallets/create",
        json={"user_id": login["user"]["id"], "currency": "USD"},
        headers={"Authorization": f"Bearer {login['access_token']}"},
    )
    answers["transfer"] = await run(
        client, filled("transfer", SENDER_WALLET_ID=wallet_id, RECEIVER_WALLET_ID=theirs.json()["id"])
    )
    answers["balance"] = await client.get(
        f"/wallets/{wallet_id}/balance", headers={"Authorization": f"Bearer {values['YOUR_ACCESS_TOKEN']}"}
    )
    return answers


async def test_each_sample_answers_as_documented(calls: dict[str, httpx.Response]) -> None:
    assert {name: response.status_code for name, response in calls.items()} == {
        "register": 201,
        "login": 200,
        "wallet": 201,
        "deposit": 201,
        "transfer": 201,
        "balance": 200,
    }


async def test_the_samples_leave_fifty_dollars(calls: dict[str, httpx.Response]) -> None:
    assert calls["balance"].json()["balance"] == "50.00"
    assert calls["transfer"].json()["amount"] == "50.00"


async def test_the_register_sample_makes_the_user_it_names(
    calls: dict[str, httpx.Response], address_tag: str
) -> None:
    wanted: dict[str, Any] = json.loads(shlex.split(sample("register"))[-1])
    del wanted["password"]
    wanted["email"] = tagged(wanted["email"], address_tag)

    registered = calls["register"].json()

    assert {name: registered[name] for name in wanted} == wanted
    assert "password" not in calls["register"].text


@pytest.mark.parametrize("name", SAMPLES)
def test_the_readme_holds_the_sample(name: str) -> None:
    assert sample(name).startswith("curl -X POST http://localhost:8000/")
