"""Statistics that hold under continuous looking. Pure: no I/O, no clock; numpy at the most."""
