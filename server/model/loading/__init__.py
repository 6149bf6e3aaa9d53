"""From a model directory to a decoder that was compared with the original model."""
