"""The parts of bench/detection.py."""
