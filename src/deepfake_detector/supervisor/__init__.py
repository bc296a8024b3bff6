"""The parent of each training process: rendezvous, attempts, and the end of a child."""
