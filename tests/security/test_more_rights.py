"""x"""

from tests.platform import Platform


async def test_x(platform: Platform) -> None:
    assert platform.gateway
