"""kvtool pull: copy documents from a server or a bucket into a local store."""

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
            help="Copy from this server, http://HOST:PORT, or from this bucket, s3://BUCKET/PREFIX.",
        ),
    ],
    names: DocumentNames = None,
    variant: OneVariant = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Replace documents of the store that differ from the remote ones."),
    ] = False,
    decrypt: Decrypt = False,
    *,
    settings: Settings,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Copy documents from a server (kvtool serve-cache) or a bucket into a store, with all that loading them needs.

    The token is taken from KVTOOL_TOKEN, and credentials for a bucket from the environment. Every byte is checked. What is
    already there is not fetched again. An interrupted run, started again, goes on where it stopped.
    """
    from kvtool.store.open import open_store
    from kvtool.store.transfer.pull import pull

    store = open_store(settings.store)
    with output.Bar("pulling") as bar:
        report = pull(
            open_store(url),
            store,
            names or None,
            variant=variant,
            replace=replace,
            decrypt=decrypt,
            dry_run=dry_run,
            on_progress=show(bar),
        )
    return finish(report, "pull", url=url, store=store, to=store, as_json=as_json)
