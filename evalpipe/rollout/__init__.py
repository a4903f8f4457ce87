"""Canary rollouts: plan, analysis and decision. Pure: a fold over ordered evidence, no I/O and no clock."""
