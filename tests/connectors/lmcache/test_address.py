"""lmcache://HOST:PORT: what is taken and what is refused, and that nobody is shown a salt."""

from __future__ import annotations

import pytest

from kvtool.connectors.lmcache.server_state import Address
from kvtool.errors import UsageError


@pytest.mark.parametrize(
    "text",
    [
        "lmcache://", "lmcache://host", "lmcache://host:many", "lmcache://host:5555/model", "lmcache://host:5555?htp=1",
        "lmcache://host:5555?http=x", "lmcache://host:5555?model", "http://host:5555",
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="lmcache://HOST:PORT"):
        Address.parse(text)


@pytest.mark.parametrize(
    "options", ["salt=s3cret&htp=1", "salt=&s3cret", "salt=x&s3cret=1", "http=s3cret", "s3cret"]
)
def test_an_error_about_an_address_leaves_its_options_out(options: str) -> None:
    for beginning in (
        "lmcache://host:5555?",
        "lmcache://host?",
        "lmcache://host:many?",
        "lmcache://host:5555/m?",
    ):
        with pytest.raises(UsageError) as refused:
            Address.parse(beginning + options)
        assert "s3cret" not in str(refused.value)
        assert "host" in str(refused.value)


def test_an_address_names_ports_model_and_salt() -> None:
    address = Address.parse("lmcache://[::1]:5555?http=9000&model=org/m%20x&salt=s")
    assert address == Address("::1", 5555, 9000, "org/m x", "s")
    assert (address.requests_url, address.http_url) == ("tcp://[::1]:5555", "http://[::1]:9000")
    assert Address.parse("lmcache://h:5555").http_port == 8080
