"""Sources of clips: the protocol, and one file a kind."""
