"""The trainer's options by subject, put together in :mod:`manylora.adapters.training.config`."""
