"""Where webhooks may go: only to the open internet, whatever a URL looks like and wherever its name moves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from agent_relay.shared.errors import WebhookRefused
from agent_relay.shared.webhooks import Resolver, Target, read_url
from agent_relay.shared.webhooks.addresses import LOOK_UPS_OF_A_TENANT, is_public

MALFORMED, PLAIN, PRIVATE = "malformed_url", "https_required", "address_not_public"

HOSTILE = {
    # Private, in plain sight.
    "https://127.0.0.1/": PRIVATE,
    "https://127.8.9.10:8443/hook": PRIVATE,
    "https://0.0.0.0/": PRIVATE,
    "https://0.1.2.3/": PRIVATE,
    "https://10.0.0.1/": PRIVATE,
    "https://172.16.0.1/": PRIVATE,
    "https://172.31.255.255/": PRIVATE,
    "https://192.168.1.1/": PRIVATE,
    "https://169.254.169.254/latest/meta-data/": PRIVATE,
    "https://168.63.129.16/machine": PRIVATE,
    "https://100.100.100.200/latest/meta-data/": PRIVATE,
    "https://100.64.0.1/": PRIVATE,
    "https://192.0.0.192/opc/v2/instance/": PRIVATE,
    "https://192.88.99.1/": PRIVATE,
    "https://198.18.0.1/": PRIVATE,
    "https://198.51.100.7/": PRIVATE,
    "https://224.0.0.1/": PRIVATE,
    "https://239.255.255.250/": PRIVATE,
    "https://240.0.0.1/": PRIVATE,
    "https://255.255.255.255/": PRIVATE,
    # The same in other numerals.
    "https://2130706433/": PRIVATE,
    "https://017700000001/": PRIVATE,
    "https://0x7f000001/": PRIVATE,
    "https://0x7f.0.0.1/": PRIVATE,
    "https://0177.0.0.1/": PRIVATE,
    "https://127.1/": PRIVATE,
    "https://127.0.1/": PRIVATE,
    "https://127.0.0.1./": PRIVATE,
    "https://127.0.0.01/": PRIVATE,
    "https://8.8.8.8.8/": PRIVATE,
    "https://256.256.256.256/": PRIVATE,
    # IPv6, and IPv4 within it.
    "https://[::1]/": PRIVATE,
    "https://[::]/": PRIVATE,
    "https://[0:0:0:0:0:0:0:1]/": PRIVATE,
    "https://[fe80::1]/": PRIVATE,
    "https://[fc00::1]/": PRIVATE,
    "https://[fd00:ec2::254]/latest/meta-data/": PRIVATE,
    "https://[fec0::1]/": PRIVATE,
    "https://[ff02::1]/": PRIVATE,
    "https://[::ffff:127.0.0.1]/": PRIVATE,
    "https://[::ffff:7f00:1]/": PRIVATE,
    "https://[::ffff:169.254.169.254]/": PRIVATE,
    "https://[::127.0.0.1]/": PRIVATE,
    "https://[64:ff9b::7f00:1]/": PRIVATE,
    "https://[64:ff9b::169.254.169.254]/": PRIVATE,
    "https://[64:ff9b:1::8.8.8.8]/": PRIVATE,
    "https://[2002:7f00:1::]/": PRIVATE,
    "https://[2001:0:4136:e378:8000:63bf:80ff:fffe]/": PRIVATE,
    "https://[2001:db8::1]/": PRIVATE,
    "https://[:::1]/": PRIVATE,
    "https://[fe80::1%25eth0]/": MALFORMED,
    "https://[127.0.0.1]/": MALFORMED,
    "https://[::1/": MALFORMED,
    # Names.
    "https://localhost/": PRIVATE,
    "https://LOCALHOST:8443/": PRIVATE,
    "https://localhost./": PRIVATE,
    "https://a.localhost/": PRIVATE,
    "https://postgres/": PRIVATE,
    "https://metadata.google.internal/computeMetadata/v1/": PRIVATE,
    "https://printer.local/": PRIVATE,
    "https://router.home.arpa/": PRIVATE,
    "https://example.com./": PRIVATE,
    "https://example..com/": PRIVATE,
    "https://-example.com/": PRIVATE,
    f"https://{'a' * 64}.com/": PRIVATE,
    # Names that are not what they look like.
    "https://bücher.example.com/": MALFORMED,
    "https://\uff11\uff12\uff17.\uff10.\uff10.\uff11/": MALFORMED,
    "https://①②⑦.⓪.⓪.①/": MALFORMED,
    "https://127。0。0。1/": MALFORMED,
    "https://lo\u00adcalhost/": MALFORMED,
    "https://%6c%6f%63alhost/": MALFORMED,
    # Parts that programs read differently.
    "https://example.com@127.0.0.1/": MALFORMED,
    "https://user:password@example.com/": MALFORMED,
    "https://example.com:443@127.0.0.1/": MALFORMED,
    "https://127.0.0.1\\@example.com/": MALFORMED,
    "https://example.com\\.127.0.0.1/": MALFORMED,
    "https://127.0.0.1#@example.com/": MALFORMED,
    "https://example.com/#fragment": MALFORMED,
    "https://example.com:0/": MALFORMED,
    "https://example.com:65536/": MALFORMED,
    "https://example.com:/": MALFORMED,
    "https://example.com:\uff14\uff14\uff13/": MALFORMED,
    "https://example.com/a b": MALFORMED,
    "https://example.com/\r\nX-Injected: 1": MALFORMED,
    "https://example.com\n": MALFORMED,
    " https://example.com": MALFORMED,
    "https:///example.com/": MALFORMED,
    "https:/example.com/": MALFORMED,
    "//example.com/": MALFORMED,
    "example.com": MALFORMED,
    "https://": MALFORMED,
    "": MALFORMED,
    f"https://example.com/{'a' * 2029}": MALFORMED,
    # Other schemes.
    "http://example.com/": PLAIN,
    "HTTP://example.com/": PLAIN,
    "ftp://example.com/": MALFORMED,
    "file:///etc/passwd": MALFORMED,
    "gopher://127.0.0.1:6379/_FLUSHALL": MALFORMED,
    "javascript:alert(1)": MALFORMED,
}


@pytest.mark.parametrize("url", HOSTILE)
def test_a_hostile_url_is_refused(url: str) -> None:
    with pytest.raises(WebhookRefused) as refused:
        read_url(url, [])

    assert refused.value.code == HOSTILE[url]


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://example.com", Target("https", "example.com", 443, "example.com", "/", trusted=False)),
        ("HTTPS://Example.COM/Hook", Target("https", "example.com", 443, "example.com", "/Hook", trusted=False)),
        ("https://example.com?a=b", Target("https", "example.com", 443, "example.com", "/?a=b", trusted=False)),
        (
            "https://hooks.example.co.uk:8443/a/b?c=d%20e&f=@:/?",
            Target(
                "https",
                "hooks.example.co.uk",
                8443,
                "hooks.example.co.uk:8443",
                "/a/b?c=d%20e&f=@:/?",
                trusted=False,
            ),
        ),
        ("https://8.8.8.8/", Target("https", "8.8.8.8", 443, "8.8.8.8", "/", trusted=False)),
        (
            "https://[2606:4700::1111]:444/",
            Target("https", "2606:4700::1111", 444, "[2606:4700::1111]:444", "/", trusted=False),
        ),
        (
            "https://xn--bcher-kva.example.xn--p1ai/",
            Target(
                "https", "xn--bcher-kva.example.xn--p1ai", 443, "xn--bcher-kva.example.xn--p1ai", "/", trusted=False
            ),
        ),
        ("http://receiver:8080/", Target("http", "receiver", 8080, "receiver:8080", "/", trusted=True)),
        ("http://[::1]/", Target("http", "::1", 80, "[::1]", "/", trusted=True)),
    ],
)
def test_a_good_url_is_taken_apart(url: str, target: Target) -> None:
    assert read_url(url, ["receiver", "::1"]) == target


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700::1111", "64:ff9b::808:808"])
def test_an_address_of_the_open_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


class Names:
    """A resolver whose names are what they are told to be, look-up by look-up."""

    def __init__(self, *answers: Sequence[str] | OSError) -> None:
        self.answers = list(answers)

    async def look_up(self, _name: str, _port: int) -> Sequence[str]:
        """Answer, the last time for ever."""
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer


async def check(url: str, *answers: Sequence[str] | OSError) -> None:
    await Resolver(["intranet"], Names(*answers).look_up).check(url, "acme", seconds=5)


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::1"], ["::ffff:10.0.0.1"], ["169.254.169.254"], ["fd00::1"]],
)
async def test_a_name_with_an_address_that_is_not_public_is_refused(addresses: list[str]) -> None:
    with pytest.raises(WebhookRefused, match="not public"):
        await check("https://rebind.example.com/", addresses)


async def test_a_name_that_cannot_be_resolved_now_is_left_to_the_connection() -> None:
    await check("https://hooks.example.com/", OSError("no answer"))

    async def never(_name: str, _port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    await Resolver([], never).check("https://hooks.example.com/", "acme", seconds=0.01)


async def test_a_host_that_the_setting_names_may_lie_anywhere() -> None:
    await check("http://intranet/hook", ["10.0.0.1"])
    with pytest.raises(WebhookRefused):
        await check("https://intranet.example.com/hook", ["10.0.0.1"])


async def test_the_system_is_asked_for_names() -> None:
    resolver = Resolver(["localhost"])

    assert set(await resolver.addresses(read_url("http://localhost/", ["localhost"]), "acme")) <= {"127.0.0.1", "::1"}
    with pytest.raises(OSError, match=r"not known|resolution|nodename|No address"):
        await resolver.addresses(read_url("https://nothing.invalid/", ["nothing.invalid"]), "acme")


async def test_a_tenant_whose_names_are_never_resolved_keeps_no_other_waiting() -> None:
    asked: list[str] = []

    async def look_up(name: str, _port: int) -> Sequence[str]:
        asked.append(name)
        if name.startswith("hangs"):
            await asyncio.Event().wait()
        return ["8.8.8.8"]

    resolver = Resolver([], look_up)
    hanging = [f"https://hangs-{number}.example.com/{path}" for number in range(50) for path in "ab"]
    waiting = [asyncio.create_task(resolver.check(url, "acme", seconds=0.2)) for url in hanging]
    await asyncio.sleep(0)
    await resolver.check("https://hooks.example.com/", "other", seconds=60)
    await asyncio.gather(*waiting)

    assert "hooks.example.com" in asked
    assert len(asked) == 1 + LOOK_UPS_OF_A_TENANT, "a look-up that hangs keeps its room, and is made once for all"


async def test_one_name_that_is_never_resolved_keeps_the_tenants_others_not_waiting() -> None:
    async def look_up(name: str, _port: int) -> Sequence[str]:
        if name.startswith("hangs"):
            await asyncio.Event().wait()
        return ["127.0.0.1"]

    resolver = Resolver([], look_up)
    for _ in range(2 * LOOK_UPS_OF_A_TENANT):
        await resolver.check("https://hangs.example.com/", "acme", seconds=0.01)
    with pytest.raises(WebhookRefused):
        await resolver.check("https://hooks.example.com/", "acme", seconds=60)
