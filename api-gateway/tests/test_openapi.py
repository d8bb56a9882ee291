"""One document of all services."""

import re
from typing import Any

import httpx
import pytest
from openapi_spec_validator import validate

from api_gateway.openapi import merge
from api_gateway.testing import Service, json_answer
from shared.testing.waiting import eventually


def document_of(segment: str, item: dict[str, Any], **scheme: str) -> dict[str, Any]:
    """A service's document: one list of items, and operations that are not for the public."""
    schema = {"$ref": "#/components/schemas/Page"}
    operation = {
        "operationId": "list",
        "tags": [segment],
        "security": [{"HTTPBearer": []}],
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": schema}}}},
    }
    private = ("/health", "/metrics", "/internal/items")
    hidden = {path: {"get": {"operationId": path, "responses": {"200": {"description": "OK"}}}} for path in private}
    return {
        "openapi": "3.1.0",
        "info": {"title": segment, "version": "1"},
        "tags": [{"name": segment, "description": f"About {segment}."}],
        "paths": {
            f"/{segment}": {"get": operation},
        }
        | hidden,
        "components": {
            "schemas": {
                "Page": {"type": "array", "items": {"$ref": "#/components/schemas/Item"}},
                "Item": {"type": "object", "properties": item},
                "Problem": {"type": "object"},
            },
            "securitySchemes": {"HTTPBearer": {"type": "http", "scheme": "bearer"} | scheme},
        },
    }


TEXT = {"value": {"type": "string"}}
NUMBER = {"value": {"type": "integer"}}


def schema_of(document: dict[str, Any], path: str) -> str:
    reference = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    return str(reference)


def test_public_paths_are_merged_and_the_rest_is_left_out() -> None:
    merged = merge(
        {
            "user-service": document_of("users", TEXT),
            "wallet-service": document_of("wallets", TEXT),
            "api-gateway": document_of("somewhere", TEXT),
        }
    )

    assert list(merged["paths"]) == ["/users", "/wallets", "/somewhere", "/health", "/metrics", "/internal/items"]
    assert merged["servers"] == [{"url": "/"}]
    assert [tag["name"] for tag in merged["tags"]] == ["users", "wallets", "somewhere"]
    validate(merged)


def test_a_service_cannot_describe_the_paths_of_another() -> None:
    merged = merge({"user-service": document_of("wallets", TEXT)})

    assert merged["paths"] == {}


def test_equal_components_are_there_once() -> None:
    merged = merge(
        {"user-service": document_of("users", TEXT), "wallet-service": document_of("wallets", TEXT)},
    )

    assert sorted(merged["components"]["schemas"]) == ["Item", "Page", "Problem"]
    assert list(merged["components"]["securitySchemes"]) == ["HTTPBearer"]
    assert merged["paths"]["/wallets"]["get"]["security"] == [{"HTTPBearer": []}]
    validate(merged)


def test_of_different_components_the_later_is_renamed_and_so_is_what_refers_to_it() -> None:
    merged = merge(
        {"user-service": document_of("users", TEXT), "wallet-service": document_of("wallets", NUMBER)},
    )

    schemas = merged["components"]["schemas"]
    assert sorted(schemas) == ["Item", "Page", "Problem", "wallet-service.Item", "wallet-service.Page"]
    assert (schemas["Item"]["properties"], schemas["wallet-service.Item"]["properties"]) == (TEXT, NUMBER)
    assert schemas["Page"]["items"] == {"$ref": "#/components/schemas/Item"}
    assert schemas["wallet-service.Page"]["items"] == {"$ref": "#/components/schemas/wallet-service.Item"}
    assert schema_of(merged, "/users") == "#/components/schemas/Page"
    assert schema_of(merged, "/wallets") == "#/components/schemas/wallet-service.Page"
    validate(merged)


def test_a_different_security_scheme_is_renamed_where_it_is_asked_for() -> None:
    merged = merge(
        {
            "user-service": document_of("users", TEXT),
            "wallet-service": document_of("wallets", TEXT, description="Another one."),
        }
    )

    assert sorted(merged["components"]["securitySchemes"]) == ["HTTPBearer", "wallet-service.HTTPBearer"]
    assert merged["paths"]["/users"]["get"]["security"] == [{"HTTPBearer": []}]
    assert merged["paths"]["/wallets"]["get"]["security"] == [{"wallet-service.HTTPBearer": []}]
    validate(merged)


def test_operation_ids_are_unique() -> None:
    merged = merge(
        {"user-service": document_of("users", TEXT), "wallet-service": document_of("wallets", TEXT)},
    )

    ids = [item["get"]["operationId"] for item in merged["paths"].values()]
    assert ids == ["list", "wallet-service.list"]


def test_a_property_called_security_is_no_requirement() -> None:
    item = {"security": {"type": "array", "items": {"type": "string"}}}

    merged = merge({"user-service": document_of("users", item)})

    assert merged["components"]["schemas"]["Item"]["properties"] == item


async def test_the_gateway_serves_what_the_services_say_and_asks_once(
    client: httpx.AsyncClient, services: dict[str, Service]
) -> None:
    for name, segment in zip(
        services, ("users", "wallets", "transactions", "payments", "notifications"), strict=True
    ):
        services[name].answer = json_answer(document_of(segment, TEXT))

    first = await client.get("/openapi.json")
    again = await client.get("/openapi.json")

    assert first.content == again.content
    assert first.headers["content-type"] == "application/json"
    assert sorted(first.json()["paths"]) == [
        "/health",
        "/notifications",
        "/payments",
        "/transactions",
        "/users",
        "/wallets",
    ]
    validate(first.json())
    targets = [[received.target for received in service.requests] for service in services.values()]
    assert targets == [["/openapi.json"]] * 5


async def test_a_service_that_is_out_is_left_out_and_asked_again(
    client: httpx.AsyncClient, services: dict[str, Service]
) -> None:
    for service in services.values():
        service.answer = json_answer({"code": "unavailable"}, "503 Service Unavailable")
    services["user-service"].answer = json_answer(document_of("users", TEXT))

    first = await client.get("/openapi.json")
    services["wallet-service"].answer = json_answer(document_of("wallets", TEXT))

    async def has_wallets() -> bool:
        return "/wallets" in (await client.get("/openapi.json")).json()["paths"]

    assert sorted(first.json()["paths"]) == ["/health", "/users"]
    validate(first.json())
    assert await eventually(has_wallets)
    assert len(services["user-service"].requests) == 1


async def test_the_docs_page_shows_the_merged_document(client: httpx.AsyncClient) -> None:
    response = await client.get("/docs")

    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "/openapi.json" in response.text
    assets = re.findall(r'(?:src|href)="([^"]+)"', response.text)
    assert len(assets) >= 2
    for asset in assets:
        assert asset.startswith("/docs/assets/")
        assert (await client.get(asset)).status_code == 200


@pytest.mark.parametrize(
    "path", ["/docs/", "/docs/assets", "/docs/assets/", "/docs/assets/../x", "/docs/assets/%2e%2e/app.py", "/docs/x"]
)
async def test_nothing_beside_the_assets_is_served(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)

    assert (response.status_code, response.json()["code"]) == (404, "route_not_found")
