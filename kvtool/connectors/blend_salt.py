"""The ``cache_salt`` of requests that name a blend."""


def blend_salt(identity: str) -> str:
    """Keeps a blend's blocks to requests that name it: an engine's own prefix cache hashes the salt with the tokens.

    ``identity`` is that of the blend's segment.
    """
    return f"kvtool blend {identity}"
