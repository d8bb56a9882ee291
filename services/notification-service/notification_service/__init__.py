"""Notifications: tells people what concerns them."""
