"""User management: who there is, and proof of who calls."""
