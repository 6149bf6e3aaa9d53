"""The example adapters and the data they are trained on; see docs/examples.md."""
