"""Alert rules and their state machine, with Prometheus's semantics. Pure: ``now`` is a parameter."""
