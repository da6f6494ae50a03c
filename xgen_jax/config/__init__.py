"""A run's configuration: plain frozen dataclasses."""
