"""Thirty simulated days of a service with incidents of all kinds: who is paged, how severely, and how soon."""
