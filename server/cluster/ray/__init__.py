"""Many replicas of a server on Ray Serve: ``pip install 'manylora[ray]'``."""
