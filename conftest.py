"""Fixtures that every test may ask for; see `shared.testing.plugin`."""

pytest_plugins = ["shared.testing.plugin"]
