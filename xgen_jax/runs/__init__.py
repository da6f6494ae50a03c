"""What lies on disk: run folders, checkpoints, what is loaded from them."""
