"""What turns texts into vectors, one file for each."""
