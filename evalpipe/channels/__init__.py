"""Channels: a notification goes outside. One file each."""
