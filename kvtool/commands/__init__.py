"""The commands, one a module. At module level they import the standard library, typer and kvtool's errors alone."""
