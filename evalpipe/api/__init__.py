"""The HTTP door: health, metrics, and everything that the command line can read; ``make_api`` is in ``app``."""
