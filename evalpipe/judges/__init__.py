"""Judges: text in, grade out. One file for each provider."""
