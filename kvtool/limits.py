"""Every bound on outside input, in one place.

A bound exists so that a hostile or broken file is refused before memory is allocated for it. They are far
above what real use needs.
"""

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

DOCUMENT_BYTES = 64 * MIB
"""One source file. Larger files are named and left out."""

UNPACKED_BYTES = 512 * MIB
"""The parts of a source file that is a zip file, such as a Word document, all together."""

CONVERSION_SECONDS = 300.0
"""Converting an office document, an e-book or a notebook to text."""

CONVERSION_BYTES = 4 * GIB
"""Memory of the process that converts these."""

SHEET_ROWS = 1 << 20
"""A sheet of a workbook, as in Excel. Empty rows count, which cost no bytes."""

HEADER_BYTES = 64 * MIB
"""An artifact's header: the safetensors header with the metadata inside."""

ARTIFACT_TENSORS = 200_000
"""Tensors in one artifact: layers × tensors per layer."""

ARTIFACT_BYTES = 1024 * GIB
"""One artifact's payload."""

ARTIFACT_TOKENS = 16 * MIB
"""Tokens of one segment, whose ids are read whole."""

CALIBRATION_BYTES = 4 * GIB
"""One calibration, which is read whole."""

MANIFEST_BYTES = 64 * MIB
"""One document's manifest."""

MARKER_BYTES = 64 * KIB
"""The file that says which format a store has."""

LISTED_DOCUMENTS = 1_000_000
"""Documents of a store in a bucket."""

DOCUMENT_NAME_BYTES = 4096
"""A document's name in the store."""

QUESTIONS_BYTES = 16 * MIB
"""A file of questions."""

REQUEST_BYTES = 16 * MIB
"""The body of a request to the server, unless it uploads an artifact."""

ENGINE_BYTES = 64 * MIB
"""An engine's answer that the proxy before it reads whole, or one event of a stream."""

REQUEST_SECONDS = 30.0
"""From a request's first byte to its last, unless it uploads an artifact."""

UPLOAD_BYTES = 16 * GIB
"""An artifact that is sent to the server."""

UPLOAD_RATE = 256 * KIB
"""Bytes a second that an upload must bring on average, once ``REQUEST_SECONDS`` are over."""

UPLOADS = 2
"""Uploads of one tenant at a time: each has a thread, and keeps ``gc`` waiting."""

UPLOAD_SECONDS = 10.0
"""That an upload waits for others of its tenant to end."""

RANGES = 2048
"""Parts of a file in one answer. Few more could be asked for within ``HEAD_BYTES``; who asks for more gets the whole file."""

CHOICES = 16
"""Answers to one prompt, and of one request that are generated at a time."""

ANSWERS = 1024
"""Answers to all prompts of one request."""

SCORED_TOKENS = 256 * KIB
"""Tokens of prompts whose log probabilities one request asks for. Those of each choice count."""

PLANNED_TOKENS = 1 * MIB
"""Tokens of prompts and their documents that one request keeps planned. Further prompts are planned again when they start."""

DOCUMENTS = 64
"""Documents of one request."""

MESSAGES = 1024
"""Messages of one conversation."""

STOPS = 16
"""Stop sequences of one completion. A chat may have 4, as OpenAI's."""

STOP_CHARACTERS = 256
"""One stop sequence."""

LOGIT_BIASES = 10_000
"""Tokens whose logits one request changes."""

STOP_TOKENS = 1024
"""Tokens that end one request's answers."""

CACHED_CONTENTS = 1000
"""Cached contents of one tenant."""

CACHED_SECONDS = 30 * 24 * 3600.0
"""Lifetime of cached contents, unless they are renewed."""

REQUESTS_BYTES = 512 * MIB
"""The bodies of all requests that are arriving or being answered."""

HEAD_BYTES = 32 * KIB
"""A request's line and headers, as far as they are looked at before they are all there."""

HEAD_FIELDS = 100
"""Headers of one request."""

HEAD_SECONDS = 10.0
"""From a connection's opening, or from a further request's first byte, to the end of the request's headers."""

IDLE_SECONDS = 120.0
"""A connection between two requests."""

STALLED_SECONDS = 60.0
"""A client that takes nothing of what it is sent."""

CONNECTIONS = 4096
"""Open connections."""

STUCK_SECONDS = 300.0
"""One round of the model, before the server is said not to be ready."""
