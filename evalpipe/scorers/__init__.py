"""Scorers: record × criterion → score. One file for each heuristic, and the judged scorer."""
