"""A loaded model as a callable."""
