"""Transactions: what people want done with money, carried out once and recorded for good."""
