"""What is done with a finished run's policy: evaluate it, film it, write it for use elsewhere."""
