"""kvtool push: copy documents from a store into a bucket, a server, or another directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.commands import output
from kvtool.commands.options import AsJson, DocumentNames, DryRun, StoreFlags, with_settings
from kvtool.commands.store.transfer import Decrypt, OneVariant, finish, show

if TYPE_CHECKING:
    from kvtool.config import Settings


@with_settings(StoreFlags)
def run(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="Copy to this bucket, s3://BUCKET/PREFIX, server, http://HOST:PORT, or directory.",
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
    """
    from kvtool.store.open import open_store
    from kvtool.store.transfer.push import push

    store = open_store(settings.store, existing=True)
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
