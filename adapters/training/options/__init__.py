"""The trainer's options by subject; :class:`adapters.training.config.TrainConfig` puts them together."""
