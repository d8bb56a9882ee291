"""External providers: charging and paying people's cards and accounts."""
