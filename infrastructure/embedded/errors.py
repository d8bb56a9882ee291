"""The one error of the embedded stack."""


class EmbeddedError(Exception):
    """Something a person has to decide or repair; its text is one sentence that says what."""
