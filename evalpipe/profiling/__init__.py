"""What a record looks like: its profile, made when it is taken in."""
