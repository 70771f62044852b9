"""Links: two-way transports for small messages."""
