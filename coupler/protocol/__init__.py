"""The protocol without I/O: client and server state machines."""
