"""Ways to move big arrays: shared memory, frames of the message, ADIOS2."""
