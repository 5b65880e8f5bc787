"""What a codec refuses."""


class CodecError(ValueError):
    """A pipeline that cannot be planned, a tensor that cannot be encoded, or bytes that cannot be decoded.

    The message names the stage, the field, the value and what was expected.
    """
