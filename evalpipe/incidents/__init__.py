"""What an alert or a rollback opens for the people on call. Pure: no I/O and no clock."""
