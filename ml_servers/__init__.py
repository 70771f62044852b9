"""What learns: the server, the trainer, the buffer, tasks and models."""
