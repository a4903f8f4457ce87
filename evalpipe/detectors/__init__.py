"""What an alert rule looks for, one file for each. Pure: no I/O, and the time is a parameter."""
