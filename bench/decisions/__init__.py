"""What bench/decisions.py measures with: laws, bounds, the engine in lockstep, rival methods, scenarios."""
