"""Sources of clips: the interface in `base`, each kind in its own file."""
