"""kvtool encrypt: encrypt a store at rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtool.commands import output
from kvtool.commands.options import AsJson, DryRun, StoreFlags, with_settings
from kvtool.counts import counted
from kvtool.errors import StoreError, UsageError

if TYPE_CHECKING:
    from kvtool.config import Settings


@with_settings(StoreFlags)
def run(*, settings: Settings, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Encrypt the artifacts and calibrations of a store, and all that is written to it from now on.

    The key is the first of KVTOOL_ENCRYPTION_KEY, which everything needs from then on that reads the store. Names, sizes and
    digests stay as they are. With two keys there, what the second has encrypted is encrypted with the first. A store that is not
    there yet is made.
    """
    from kvtool.artifact.store_key import ENCRYPTION_KEY, store_keys
    from kvtool.store.catalog.local import LocalCatalog
    from kvtool.store.encrypt import encrypt
    from kvtool.store.layout import address, scheme

    if scheme(settings.store):
        remedy = "push an encrypted store into a new one there: the copy is encrypted too"
        raise StoreError(address(settings.store), "is not a directory", remedy)
    key = next(iter(store_keys().values()), None)
    if key is None:
        remedy = f"kvtool keygen --encryption NAME makes one; name its file in {ENCRYPTION_KEY}"
        raise UsageError("the key to encrypt with", "is not given", remedy)
    catalog = LocalCatalog(settings.store)
    with output.Bar("encrypting") as bar:
        report = encrypt(
            catalog,
            key,
            dry_run=dry_run,
            on_progress=lambda report: bar.update(report.encrypted, report.total, "files"),
        )
    value = {"key": key.id, "dry_run": dry_run, "encrypted": report.encrypted, "files": report.total}
    verb = "would encrypt" if dry_run else "encrypted"
    note = f"{verb} {report.encrypted} of {counted(report.total, 'file')} with key {key.id}"
    output.emit(value, output.Lines(notes=[note]), as_json)
