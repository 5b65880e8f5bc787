"""kvtool push: copy documents from a store into a bucket, a server, another directory, or an LMCache server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.commands import output
from kvtool.commands.options import AsJson, DocumentNames, DryRun, StoreFlags, with_settings
from kvtool.commands.store.transfer import Decrypt, OneVariant, finish, show

if TYPE_CHECKING:
    from kvtool.config import Settings
    from kvtool.store.base import Store


@with_settings(StoreFlags)
def run(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="Copy to this bucket, s3://BUCKET/PREFIX, server, http://HOST:PORT, or directory; or give the caches "
            "to an LMCache server, lmcache://HOST:PORT.",
        ),
    ],
    names: DocumentNames = None,
    variant: OneVariant = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Replace documents there that differ from those of the store."),
    ] = False,
    decrypt: Decrypt = False,
    *,
    settings: Settings,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Copy documents from a store into a bucket, a server (kvtool serve-cache) or another directory, with all that loading needs.

    Credentials for a bucket are taken from the environment, and a server's token from KVTOOL_TOKEN. What is already there is
    not sent again. An interrupted run, started again, goes on where it stopped. Of two that push at once, neither loses
    anything.

    An LMCache server is given keys and values of one variant, which its engines find by token ids (docs/how-to/lmcache.md).
    """
    from kvtool.store.layout import scheme
    from kvtool.store.open import open_store
    from kvtool.store.transfer.push import push

    store = open_store(settings.store, existing=True)
    if scheme(url) == "lmcache":
        return _to_lmcache(store, url, names, variant, replace, decrypt, dry_run, as_json)
    with output.Bar("pushing") as bar:
        report = push(
            store,
            url,
            names or None,
            variant=variant,
            replace=replace,
            decrypt=decrypt,
            dry_run=dry_run,
            on_progress=show(bar),
        )
    return finish(report, "push", url=url, store=store, to=url, as_json=as_json)


def _to_lmcache(
    store: Store,
    url: str,
    names: list[str] | None,
    variant: str | None,
    replace: bool,
    decrypt: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    from kvtool.connectors.lmcache.push import push_to_lmcache, remarks
    from kvtool.connectors.lmcache.server_state import Address
    from kvtool.errors import UsageError

    if replace:
        raise UsageError("--replace", "LMCache replaces nothing", "leave it out, or name another ?salt=")
    with output.Bar("pushing") as bar:
        report = push_to_lmcache(
            store,
            url,
            names or None,
            variant=variant,
            decrypt=decrypt,
            dry_run=dry_run,
            on_progress=show(bar),
        )
    # Without its options: a salt may be a secret.
    shown = str(Address.parse(url))
    code = finish(report, "push", url=shown, store=store, to=shown, as_json=as_json)
    for line in remarks(report) if report.copied else []:
        output.note(line)
    return code
