"""Canary rollouts: plan, gates, fold and decision. Pure: a fold over ordered inputs, no I/O and no clock."""
