"""One verb a file. Only the standard library, typer and light helpers are imported at module level."""
