"""Many replicas: how requests are spread over them, in a simulation, and what Ray Serve costs before them."""
