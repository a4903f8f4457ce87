"""Scorecards: what people write in YAML.

``load_scorecards`` reads and checks files, ``Scorecard`` is what the pipeline works with.
"""
