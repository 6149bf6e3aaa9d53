"""What a run leaves for people to read: model card, HTML report and curves."""
