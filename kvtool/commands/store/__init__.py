"""Commands that read or change a store and run no model."""
