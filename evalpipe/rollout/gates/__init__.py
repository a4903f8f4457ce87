"""Gates: what a canary is tested on. One file for each kind."""
