"""The one error of the embedded stack."""


class EmbeddedError(Exception):
    """Something a person has to decide or repair: one sentence that says what, and the exit status."""

    status = 1
