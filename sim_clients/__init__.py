"""What makes states: the driver loop, solvers and adapters to existing codes."""
