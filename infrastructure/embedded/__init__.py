"""The platform on one machine without Docker: four engines from wheels, and the six services beside them.

Standard library only, so that it runs before anything is installed. Tests use `Stack`.
"""

from infrastructure.embedded.errors import EmbeddedError
from infrastructure.embedded.stack import Stack

__all__ = ["EmbeddedError", "Stack"]
