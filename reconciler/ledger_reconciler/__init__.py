"""Watches the money: reads what the services have written, and says where it does not add up."""
