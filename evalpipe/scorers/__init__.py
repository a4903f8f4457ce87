"""Scorers: record and criterion in, score out. One file for each heuristic, and the judged scorer."""
