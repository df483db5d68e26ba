"""MLX Manager: run, serve and see local language models."""

__version__ = "0.1.0"
