"""Models: loading, identity, chat templates."""
