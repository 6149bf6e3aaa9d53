"""What an adapter is: artifacts, revisions, mixes. Never imports ``server``."""
