"""What a run is made of before it starts: configuration, base, data, output directory."""
