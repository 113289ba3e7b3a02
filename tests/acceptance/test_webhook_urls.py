"""The API refuses webhook URLs that lead anywhere but to the open internet."""

from __future__ import annotations

from agent_relay.shared.webhooks.addresses import LONGEST_URL
from tests.support.client import Client
from tests.support.problems import errors_of
from tests.unit.shared.webhooks.test_addresses import HOSTILE


async def test_the_api_refuses_them_where_they_are_given(client: Client) -> None:
    for path in ("/runs", "/agent/query", "/agent/stream"):
        for url, code in HOSTILE.items():
            query = {"agent_type": "echo", "query": "?", "webhook_url": url}
            expected = "string_too_long" if len(url) > LONGEST_URL else code
            assert errors_of(await client.http.post(path, json=query)) == {("/webhook_url", expected)}, url

    assert (await client.http.get("/runs")).json()["items"] == []
