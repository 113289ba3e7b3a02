"""Which user a name stands for."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_relay.api.requests.users import user_of
from agent_relay.shared.api_keys import ApiKey

PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))
tenants = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,62}", fullmatch=True)
names = st.text(PRINTABLE, min_size=1, max_size=128).filter(lambda name: name == name.strip())


@given(tenants, st.sets(names, min_size=2, max_size=4))
def test_each_name_is_one_user_and_no_two_are_the_same(tenant: str, some: set[str]) -> None:
    users = {name: user_of(tenant, name) for name in some}

    assert len(set(users.values())) == len(some)
    assert users == {name: user_of(tenant, name) for name in some}


@given(st.sets(tenants, min_size=2, max_size=4), names)
def test_a_name_is_another_user_in_another_tenant(some: set[str], name: str) -> None:
    assert len({user_of(tenant, name) for tenant in some}) == len(some)


@given(tenants, st.uuids())
def test_a_uuid_is_itself_however_it_is_written(tenant: str, user: UUID) -> None:
    assert user_of(tenant, str(user)) == user_of(tenant, str(user).upper()) == user


@given(tenants, st.uuids(), st.sampled_from(["{{{}}}", "urn:uuid:{}", "{}0", "+{}", "{},{}"]))
def test_what_only_looks_like_a_uuid_is_a_name(tenant: str, user: UUID, form: str) -> None:
    assert user_of(tenant, form.format(user, user)) != user
    assert user_of(tenant, user.hex) != user


@given(tenants, st.text(max_size=200))
def test_what_no_header_can_say_is_no_name(tenant: str, name: str) -> None:
    if 1 <= len(name) <= 128 and set(name) <= set(PRINTABLE) and name == name.strip():
        assert user_of(tenant, name).version == 5
    else:
        with pytest.raises(ValueError, match="not a name"):
            user_of(tenant, name)


@pytest.mark.parametrize("name", ["", " ", " x", "x ", "x\n", "x\ty", "\x7f", "\u00e4", "x" * 129])
def test_these_are_no_names(name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        user_of("acme", name)


def test_who_is_who_never_changes() -> None:
    assert user_of("acme", "ann@example.com") == UUID("bf4aa8cc-ea8a-5e28-9f9f-6dad34991169")
    assert ApiKey("acme", b"0123456789abcdef").own_user == UUID("55fbda0b-f1b6-5a31-b235-89f38d530105")
