import socket
from collections.abc import Iterator

import pytest

from infrastructure.embedded import ports


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"])  # noqa: S104 - a stranger's server
def taken(request: pytest.FixtureRequest) -> Iterator[int]:
    with socket.create_server((request.param, 0)) as listener:
        yield listener.getsockname()[1]


def test_a_port_somebody_listens_on_is_not_free(taken: int) -> None:
    assert not ports.is_free(taken)


def test_the_first_free_port_of_the_preferred_ones_is_chosen(taken: int) -> None:
    free = ports.choose([])

    assert ports.choose([taken, free]) == free


def test_without_a_free_preferred_port_any_free_one_is_chosen(taken: int) -> None:
    chosen = ports.choose([taken])

    assert chosen in ports.FREE_RANGE
    assert ports.is_free(chosen)


def test_a_port_is_free_again_as_soon_as_its_listener_has_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            listener.accept()[0].close()

    assert ports.is_free(port)
