"""Use cases of user-service."""
