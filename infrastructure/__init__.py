"""What the platform runs on: the embedded stack, and the configuration of its monitoring."""
