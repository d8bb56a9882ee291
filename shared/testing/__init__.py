"""What tests share: real engines, a database of one's own, services on free ports."""
