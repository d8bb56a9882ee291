"""Wallets and the ledger: the only place where money is."""
